// Makes calls with the TypeScript SDK's client, which checks each result against the tool's output schema.
// Arguments: the server's command and the calls, as JSON. Prints what came of each.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

const [[command, ...args], calls] = process.argv.slice(2).map((text) => JSON.parse(text));
const client = new Client({ name: "conformance-typescript", version: "1" });
await client.connect(new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" }));
const { tools } = await client.listTools();
const results = [];
for (const [name, given] of calls) {
  let result = await client.callTool({ name, arguments: given });
  const id = result.structuredContent?.job_id;
  results.push({ name, isError: result.isError ?? false, content: result.structuredContent });
  while (id && (result.structuredContent?.state ?? "running") === "running") {
    result = await client.callTool({ name: "job", arguments: { id, action: "result" } });
    results.push({ name: "job", isError: result.isError ?? false, content: result.structuredContent });
  }
}
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), results }));
await client.close();
