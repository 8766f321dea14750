/* What gcc's -fsanitize-coverage=trace-pc calls: counts the edges that were taken, in a map that the fuzzer reads. */
#include <stdint.h>

uint8_t coverage_map[1 << 16];

static uintptr_t previous;

__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void)
{
    uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)coverage_map;
    here ^= here >> 16;
    uint8_t *count = &coverage_map[(here ^ previous) & 0xFFFF];
    if (*count != 255)
        ++*count;
    previous = here >> 1;
}
