"use strict";
// Makes the gRPC calls that it is told of with @grpc/grpc-js, and prints what became of each.
// In, a line of JSON each: {id, path, messages, requestStreaming, responseStreaming, metadata,
// timeoutMs} or {id, cancel: true}. Out: {id, code, details, messages, initial, trailing}.
// Messages and values of -bin metadata are base64.

const grpc = require("@grpc/grpc-js");
const readline = require("node:readline");

const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
});
const running = new Map();
const same = (bytes) => bytes;

function metadataOf(pairs) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of pairs) {
    metadata.add(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);
  }
  return metadata;
}

function pairsOf(metadata) {
  const pairs = [];
  if (!metadata) return pairs;
  for (const key of Object.keys(metadata.getMap())) {
    for (const value of metadata.get(key)) {
      pairs.push([key, Buffer.isBuffer(value) ? value.toString("base64") : value]);
    }
  }
  return pairs;
}

function begin(call) {
  const messages = call.messages.map((text) => Buffer.from(text, "base64"));
  const metadata = metadataOf(call.metadata);
  const options = call.timeoutMs === null ? {} : { deadline: Date.now() + call.timeoutMs };
  const seen = { id: call.id, code: null, details: "", messages: [], initial: [], trailing: [] };
  const received = (message) => seen.messages.push(message.toString("base64"));
  const answered = (error, message) => message && received(message);
  const common = [call.path, same, same];
  let rpc;
  if (call.requestStreaming && call.responseStreaming) {
    rpc = client.makeBidiStreamRequest(...common, metadata, options);
  } else if (call.requestStreaming) {
    rpc = client.makeClientStreamRequest(...common, metadata, options, answered);
  } else if (call.responseStreaming) {
    rpc = client.makeServerStreamRequest(...common, messages[0], metadata, options);
  } else {
    rpc = client.makeUnaryRequest(...common, messages[0], metadata, options, answered);
  }
  running.set(call.id, rpc);
  rpc.on("metadata", (initial) => (seen.initial = pairsOf(initial)));
  rpc.on("error", () => {});
  rpc.on("status", (status) => {
    running.delete(call.id);
    Object.assign(seen, { code: status.code, details: status.details, trailing: pairsOf(status.metadata) });
    // The callback of a unary reply comes in the same turn.
    setImmediate(() => process.stdout.write(JSON.stringify(seen) + "\n"));
  });
  if (call.responseStreaming) rpc.on("data", received);
  if (call.requestStreaming) {
    for (const message of messages) rpc.write(message);
    rpc.end();
  }
}

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const told = JSON.parse(line);
  if (!told.cancel) begin(told);
  else if (running.has(told.id)) running.get(told.id).cancel();
});
lines.on("close", () => {
  client.close();
  process.exit(0);
});
