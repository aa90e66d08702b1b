// A certified OAuth server (npm oidc-provider) on 127.0.0.1: one client for every way of authentication, refresh tokens minted
// without a browser, rotation always on, reuse of a spent token detected; and clients that get tokens for themselves.
//
//   node server.mjs --ready-file FILE --keys-dir DIR [--at-ttl 60]
//
// Beside OAuth, for the test alone:
//   POST /_test/mint?client=basic&n=100   JSON lines with grant_id and refresh_token
//   GET  /_test/stats                     what was granted and refused, and how often a spent token came again
//   POST /_test/revoke?grant=ID           the user takes the grant back
//   POST /_test/inspect                   whose the client's own token in the body is, and until when
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import * as jose from 'jose';
import Provider, { errors } from 'oidc-provider';

const { values: options } = parseArgs({
  options: {
    'at-ttl': { type: 'string', default: '60' },
    'own-ttl': { type: 'string', default: '8' },
    'ready-file': { type: 'string' },
    'keys-dir': { type: 'string' },
  },
});
const scope = 'api:read offline_access';
const stats = { refresh_ok: 0, errors: {}, reuse_detected: 0, by_client: {} };

// The adapter that comes with oidc-provider keeps 1000 entries and silently drops the rest; this one drops nothing.
const store = new Map();
const keysOfGrant = new Map();

class MapAdapter {
  constructor(model) {
    this.model = model;
  }

  key(id) {
    return `${this.model}:${id}`;
  }

  async upsert(id, payload) {
    const key = this.key(id);
    store.set(key, payload);
    if (!payload.grantId) return;
    if (!keysOfGrant.has(payload.grantId)) keysOfGrant.set(payload.grantId, new Set());
    keysOfGrant.get(payload.grantId).add(key);
  }

  async find(id) {
    return store.get(this.key(id));
  }

  async findByUid(uid) {
    for (const [key, value] of store) if (key.startsWith('Session:') && value.uid === uid) return value;
    return undefined;
  }

  async findByUserCode() {
    return undefined;
  }

  // find() and consume() are two calls, so two uses at one time could both pass: the second one is reuse as well.
  async consume(id) {
    const payload = store.get(this.key(id));
    if (!payload || payload.consumed) {
      stats.reuse_detected++;
      throw new errors.InvalidGrant('refresh token already used');
    }
    payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    store.delete(this.key(id));
  }

  async revokeByGrantId(grantId) {
    for (const key of keysOfGrant.get(grantId) ?? []) if (key.startsWith(`${this.model}:`)) store.delete(key);
  }
}

async function makeKey(alg, kid) {
  const { publicKey, privateKey } = await jose.generateKeyPair(alg, { extractable: true });
  const common = { kid, alg, use: 'sig' };
  return {
    public: { ...(await jose.exportJWK(publicKey)), ...common },
    private: { ...(await jose.exportJWK(privateKey)), ...common },
    pem: await jose.exportPKCS8(privateKey),
  };
}

const signing = await makeKey('RS256', 'server');
const es = await makeKey('ES256', 'client-es');
const rs = await makeKey('RS256', 'client-rs');
mkdirSync(options['keys-dir'], { recursive: true });
writeFileSync(join(options['keys-dir'], 'es.pem'), es.pem, { mode: 0o600 });
writeFileSync(join(options['keys-dir'], 'rs.pem'), rs.pem, { mode: 0o600 });

const jwt = (id, alg, key) => ({
  client_id: id,
  token_endpoint_auth_method: 'private_key_jwt',
  token_endpoint_auth_signing_alg: alg,
  jwks: { keys: [key.public] },
});
const clients = [
  { client_id: 'basic', client_secret: 'basic-secret', token_endpoint_auth_method: 'client_secret_basic' },
  // RFC 6749 section 2.3.1: both have to be form-encoded before base64.
  { client_id: 'odd:client/1 %+', client_secret: 'p@ss w/%+&=:~', token_endpoint_auth_method: 'client_secret_basic' },
  { client_id: 'post', client_secret: 'post-secret&=+%', token_endpoint_auth_method: 'client_secret_post' },
  jwt('pkjwt-es', 'ES256', es),
  jwt('pkjwt-rs', 'RS256', rs),
  { client_id: 'public', token_endpoint_auth_method: 'none' },
].map((client) => ({
  ...client,
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
  redirect_uris: ['https://client.test/cb'],
}));

// Those that come for themselves: no user, no refresh token.
for (const client of [
  { client_id: 'own:basic/1 %', client_secret: 'own p@ss&=+%', token_endpoint_auth_method: 'client_secret_basic' },
  { client_id: 'own-post', client_secret: 'own-post-secret', token_endpoint_auth_method: 'client_secret_post' },
  jwt('own-pkjwt', 'ES256', es),
]) {
  clients.push({ ...client, grant_types: ['client_credentials'], response_types: [], redirect_uris: [] });
}

// Listen first, so that the issuer can name the port.
let handle = (req, res) => {
  res.statusCode = 503;
  res.end();
};
const server = http.createServer((req, res) => handle(req, res));
server.keepAliveTimeout = 60_000;
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  adapter: MapAdapter,
  clients,
  jwks: { keys: [signing.private] },
  scopes: ['openid', 'offline_access', 'api:read'],
  clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'private_key_jwt', 'none'],
  enabledJWA: { clientAuthSigningAlgValues: ['ES256', 'RS256'] },
  features: { devInteractions: { enabled: false }, clientCredentials: { enabled: true } },
  findAccount: async (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  rotateRefreshToken: () => true,
  ttl: { AccessToken: Number(options['at-ttl']), ClientCredentials: Number(options['own-ttl']), RefreshToken: 86400, Grant: 86400, IdToken: 3600, Session: 86400, Interaction: 3600 },
  cookies: { keys: ['for tests'] },
});
provider.on('grant.success', (ctx) => {
  const id = ctx.oidc.client.clientId;
  stats.refresh_ok++;
  stats.by_client[id] = (stats.by_client[id] ?? 0) + 1;
});
provider.on('grant.error', (ctx, e) => {
  stats.errors[e.error] = (stats.errors[e.error] ?? 0) + 1;
  if (/already used/.test(e.error_detail ?? '')) stats.reuse_detected++;
});
provider.on('server_error', (ctx, e) => {
  stats.errors.server_error = (stats.errors.server_error ?? 0) + 1;
  console.error(e);
});

let accounts = 0;
async function mint(clientId, n) {
  const client = await provider.Client.find(clientId);
  if (!client) throw new Error(`no client ${clientId}`);
  const lines = [];
  for (let i = 0; i < n; i++) {
    const accountId = `account-${++accounts}`;
    const grant = new provider.Grant({ accountId, clientId });
    grant.addOIDCScope(scope);
    const grantId = await grant.save();
    const token = new provider.RefreshToken({
      accountId, client, grantId, scope, gty: 'authorization_code', rotations: 0, expiresWithSession: false,
    });
    lines.push(JSON.stringify({ grant_id: grantId, refresh_token: await token.save() }));
  }
  return `${lines.join('\n')}\n`;
}

async function control(req, res, url) {
  const query = Object.fromEntries(url.searchParams);
  switch (`${req.method} ${url.pathname}`) {
    case 'POST /_test/mint':
      return mint(query.client, Number(query.n));
    case 'GET /_test/stats':
      return JSON.stringify(stats);
    case 'POST /_test/revoke':
      for (const model of ['AccessToken', 'RefreshToken']) await provider[model].revokeByGrantId(query.grant);
      await provider.Grant.adapter.destroy(query.grant);
      return '{}';
    case 'POST /_test/inspect': {
      let value = '';
      for await (const piece of req) value += piece;
      const token = await provider.ClientCredentials.find(value);
      return JSON.stringify(token ? { client: token.clientId, scope: token.scope, exp: token.exp } : {});
    }
    default:
      res.statusCode = 404;
      return '{}';
  }
}

const app = provider.callback();
handle = (req, res) => {
  if (!req.url.startsWith('/_test/')) {
    app(req, res);
    return;
  }
  control(req, res, new URL(req.url, issuer)).then(
    (text) => res.end(text),
    (e) => {
      res.statusCode = 400;
      res.end(String(e));
    },
  );
};

writeFileSync(`${options['ready-file']}.new`, JSON.stringify({ issuer, token_endpoint: `${issuer}/token` }));
renameSync(`${options['ready-file']}.new`, options['ready-file']);
process.on('SIGTERM', () => process.exit(0));
