// Reads {"arrived_us":...,"headers":{...},"body":"..."} lines from stdin and verifies each with npm standardwebhooks under the secret
// in the file that is named; prints "ok" or "bad: why" a line. The clock stands at the moment of arrival, as it did for the
// receiver: the library refuses what is older than five minutes.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { Webhook } from 'standardwebhooks';

const RealDate = Date;
let now = 0;
globalThis.Date = class extends RealDate {
  constructor(...given) { super(...(given.length > 0 ? given : [now])); }
  static now() { return now; }
};
const webhook = new Webhook(readFileSync(process.argv[2], 'utf8').trim());
for await (const line of createInterface({ input: process.stdin })) {
  const { arrived_us: arrived, headers, body } = JSON.parse(line);
  now = arrived / 1000;
  try {
    webhook.verify(body, headers);
    console.log('ok');
  } catch (e) {
    console.log(`bad: ${e.message}`);
  }
}
