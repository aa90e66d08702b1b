// Reads {"headers":{...},"body":"..."} lines from stdin and verifies each with npm standardwebhooks under the secret in the file
// that is named; prints "ok" or "bad: why" a line.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { Webhook } from 'standardwebhooks';

const webhook = new Webhook(readFileSync(process.argv[2], 'utf8').trim());
for await (const line of createInterface({ input: process.stdin })) {
  const { headers, body } = JSON.parse(line);
  try {
    webhook.verify(body, headers);
    console.log('ok');
  } catch (e) {
    console.log(`bad: ${e.message}`);
  }
}
