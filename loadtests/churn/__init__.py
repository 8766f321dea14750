"""Models come, change and go, again and again, and calls go on: nobody may notice, nothing may pile up."""
