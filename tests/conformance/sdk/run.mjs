// Runs one client package against refreshd: node run.mjs PACKAGE BASE KEY CONSUMER < import-body.json
// Each step is printed as one JSON line {step, value} or {step, error}; test_sdk.py judges them.
import {createRequire} from "node:module";
import fs from "node:fs";

const require = createRequire(import.meta.url);
const [pkg, base, key, consumerId] = process.argv.slice(2);
const given = JSON.parse(fs.readFileSync(0, "utf8"));
const at = {serviceId: "a", unifiedApi: "accounting"};

function plain(x) {
	return x === undefined ? null : JSON.parse(JSON.stringify(x));
}

async function step(name, fn) {
	try {
		console.log(JSON.stringify({step: name, value: plain(await fn())}));
	} catch (e) {
		console.log(JSON.stringify({step: name, error: {class: e?.constructor?.name ?? typeof e, status: e?.statusCode ?? e?.status ?? null,
			message: String(e?.message ?? e).slice(0, 300), cause: String(e?.cause ?? "").slice(0, 1500)}}));
	}
}

async function firstPage(list) {
	for await (const page of await list)
		return page;
	return null;
}

async function unify() {
	const {Apideck} = require(pkg);
	const sdk = new Apideck({apiKey: key, consumerId, appId: "app", serverURL: base});
	const {connections, validateConnection, consumers, logs} = sdk.vault;
	const connectionImportData = {credentials: {accessToken: given.access_token, refreshToken: given.refresh_token,
		issuedAt: new Date(given.issued_at), expiresIn: given.expires_in}, settings: {region: "eu"}, metadata: {plan: "gold"}};
	await step("import", () => connections.imports({...at, connectionImportData}));
	await step("list", () => connections.list({}));
	await step("get", () => connections.get(at));
	await step("update", () => connections.update({...at, connection: {enabled: true, metadata: {plan: "silver"}}}));
	await step("validate", () => validateConnection.state(at));
	await step("consumers", () => firstPage(consumers.list({})));
	await step("consumer", () => consumers.get({consumerId}));
	await step("logs", () => firstPage(logs.list({})));
	await step("not_found", () => connections.get({...at, serviceId: "none"}));
	await step("bad_import", () => connections.imports({...at, connectionImportData: {credentials: {}}}));
	await step("delete", () => connections.delete(at));
	await step("deleted", () => connections.get(at));
	const stranger = new Apideck({apiKey: key + "x", consumerId, appId: "app", serverURL: base});
	await step("unauthorized", () => stranger.vault.connections.get(at));
}

async function node() {
	const {Apideck} = require(pkg);
	const sdk = new Apideck({apiKey: key, appId: "app", consumerId, basePath: base});
	const {vault} = sdk;
	const connection = {credentials: {access_token: given.access_token, refresh_token: given.refresh_token, issued_at: given.issued_at,
		expires_in: given.expires_in}, settings: {region: "eu"}, metadata: {plan: "gold"}};
	await step("import", () => vault.connectionsImport({...at, connection}));
	await step("list", () => vault.connectionsAll({}));
	await step("get", () => vault.connectionsOne(at));
	await step("update", () => vault.connectionsUpdate({...at, connection: {enabled: true, metadata: {plan: "silver"}}}));
	await step("validate", () => vault.validateConnectionState(at));
	await step("consumers", () => vault.consumersAll({}));
	await step("consumer", () => vault.consumersOne({consumerId}));
	await step("logs", () => vault.logsAll({}));
	await step("not_found", () => vault.connectionsOne({...at, serviceId: "none"}));
	await step("bad_import", () => vault.connectionsImport({...at, connection: {credentials: {}}}));
	await step("delete", () => vault.connectionsDelete(at));
	await step("deleted", () => vault.connectionsOne(at));
	const stranger = new Apideck({apiKey: key + "x", appId: "app", consumerId, basePath: base});
	await step("unauthorized", () => stranger.vault.connectionsOne(at));
}

await (pkg === "@apideck/node" ? node() : unify());
