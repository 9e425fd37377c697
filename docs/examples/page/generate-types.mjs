// Writes TypeScript types of the messages that a page receives: node generate-types.mjs SCHEMAS OUTPUT
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import { compile } from "json-schema-to-typescript";

const MESSAGES = {
  state_changed: "messages/state_changed.v1.json",
  log_appended: "messages/log_appended.v1.json",
  exec_started: "messages/exec_started.v1.json",
  exec_output: "messages/exec_output.v1.json",
  exec_exited: "messages/exec_exited.v1.json",
  frontend_credential_reply: "rpcs/frontend_credential.reply.json",
  read_log_body: "rpcs/read_log.body.json",
  read_log_reply: "rpcs/read_log.reply.json",
};

const [schemas, output] = process.argv.slice(2);
const definitions = {};
const properties = {};

function define(name, schema) {
  if (name in definitions && !isDeepStrictEqual(definitions[name], schema)) {
    throw new Error(`two schemas define ${name} differently`);
  }
  definitions[name] = schema;
}

for (const [key, file] of Object.entries(MESSAGES)) {
  const { $schema, $defs = {}, ...schema } = JSON.parse(await readFile(path.join(schemas, file), "utf8"));
  for (const [name, definition] of Object.entries($defs)) define(name, definition);
  properties[key] = schema;
}

const types = await compile(
  { title: "Messages", type: "object", properties, required: Object.keys(properties), $defs: definitions },
  "Messages",
  {
    additionalProperties: false,
    bannerComment: "// Made from docs/schemas by `npm run types`, do not edit.",
    unreachableDefinitions: false,
  },
);
await writeFile(output, types);
