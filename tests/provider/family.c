/*
 * family - refresh token families: what each token is worth, and what becomes of the family.
 *
 * A token's text carries realm, family and generation and a seal under a per-run secret, so a family is a
 * 32-byte struct in an array and no token is stored. The rules of the three rotation modes live in
 * family_present() and nowhere else; the README states them for readers of the ledger.
 */
#include "provider/simulator.h"

#include <string.h>

#include "base/base64.h"
#include "base/crypto.h"
#include "base/mem.h"
#include "base/sys.h"

#define HEAD_BYTES 11 /* kind, realm, family, generation */
#define SEAL_BYTES 13
#define RAW_BYTES (HEAD_BYTES + SEAL_BYTES)
#define TEXT_HEAD 35 /* "rt_" and 32 characters */

int realm_mint(struct realm *r, uint32_t n, int64_t at_expires_us, uint32_t *first, struct fault *f)
{
	uint64_t want = (uint64_t)r->family_count + n;
	if (want >= UNKNOWN_FAMILY)
		return fault_set(
			f, ST_FULL, "realm %s cannot hold %llu families", r->name, (unsigned long long)want);
	if (want > r->family_cap) {
		uint64_t cap = r->family_cap < 1024 ? 1024 : (uint64_t)r->family_cap * 2;
		r->family_cap = (uint32_t)(cap > want ? cap : want);
		if (cap >= UNKNOWN_FAMILY)
			r->family_cap = UNKNOWN_FAMILY - 1;
		r->families = mem_realloc(r->families, r->family_cap, sizeof *r->families);
	}
	*first = r->family_count;
	for (uint32_t i = r->family_count; i < want; i++)
		r->families[i] = (struct family){.at_expires_us = at_expires_us, .gen = 1, .first = 1};
	r->family_count = (uint32_t)want;
	return 0;
}

static void seal(struct sim *s, unsigned realm, uint32_t family, uint32_t gen, uint8_t out[32])
{
	uint8_t msg[HEAD_BYTES - 1] = {(uint8_t)(realm >> 8), (uint8_t)realm, (uint8_t)(family >> 24),
		(uint8_t)(family >> 16), (uint8_t)(family >> 8), (uint8_t)family, (uint8_t)(gen >> 24),
		(uint8_t)(gen >> 16), (uint8_t)(gen >> 8), (uint8_t)gen};
	crypto_hmac_sha256(s->secret, sizeof s->secret, msg, sizeof msg, out);
}

/* The seal's first half is the refresh token's, the second the access token's; longer tokens repeat their own
 * text. */
static void token_text(struct sim *s, const struct realm *r, enum token_kind kind, uint32_t family,
	uint32_t gen, const uint8_t mac[32], char *out)
{
	uint8_t raw[RAW_BYTES] = {(uint8_t)kind, (uint8_t)(r->index >> 8), (uint8_t)r->index,
		(uint8_t)(family >> 24), (uint8_t)(family >> 16), (uint8_t)(family >> 8), (uint8_t)family,
		(uint8_t)(gen >> 24), (uint8_t)(gen >> 16), (uint8_t)(gen >> 8), (uint8_t)gen};
	size_t len = kind == TOKEN_REFRESH ? r->rt_len : r->at_len;
	memcpy(raw + HEAD_BYTES, mac + (kind == TOKEN_REFRESH ? 0 : SEAL_BYTES), SEAL_BYTES);
	buf_truncate(&s->tmp, 0);
	put(base64url_encode(&s->tmp, raw, sizeof raw));
	memcpy(out, kind == TOKEN_REFRESH ? "rt_" : "at_", 3);
	memcpy(out + 3, s->tmp.data, TEXT_HEAD - 3);
	for (size_t i = TEXT_HEAD; i < len; i++)
		out[i] = out[i - (TEXT_HEAD - 3)];
	out[len] = '\0';
}

void token_make(struct sim *s, const struct realm *r, uint32_t family, uint32_t rt_gen, uint32_t at_gen,
	char rt[TOKEN_MAX + 1], char at[TOKEN_MAX + 1])
{
	uint8_t mac[32];
	seal(s, r->index, family, rt_gen, mac);
	if (rt != NULL)
		token_text(s, r, TOKEN_REFRESH, family, rt_gen, mac, rt);
	if (at == NULL)
		return;
	if (at_gen != rt_gen)
		seal(s, r->index, family, at_gen, mac);
	token_text(s, r, TOKEN_ACCESS, family, at_gen, mac, at);
}

int token_read(struct sim *s, enum token_kind kind, const char *p, size_t n, struct realm **r,
	uint32_t *family, uint32_t *gen)
{
	if (n < TEXT_HEAD || memcmp(p, kind == TOKEN_REFRESH ? "rt_" : "at_", 3) != 0)
		return ST_INVALID;
	buf_truncate(&s->tmp, 0);
	if (base64url_decode(&s->tmp, p + 3, TEXT_HEAD - 3) != 0 || s->tmp.len != RAW_BYTES ||
		s->tmp.data[0] != kind)
		return ST_INVALID;
	const uint8_t *d = s->tmp.data;
	unsigned realm = (unsigned)d[1] << 8 | d[2];
	uint32_t fam = (uint32_t)d[3] << 24 | (uint32_t)d[4] << 16 | (uint32_t)d[5] << 8 | d[6];
	uint32_t g = (uint32_t)d[7] << 24 | (uint32_t)d[8] << 16 | (uint32_t)d[9] << 8 | d[10];
	uint8_t mac[32];
	if (realm >= s->realm_count || fam >= s->realms[realm]->family_count || g == 0 ||
		g > s->realms[realm]->families[fam].gen)
		return ST_INVALID;
	if (n != (kind == TOKEN_REFRESH ? s->realms[realm]->rt_len : s->realms[realm]->at_len))
		return ST_INVALID;
	seal(s, realm, fam, g, mac);
	if (!crypto_equal(d + HEAD_BYTES, mac + (kind == TOKEN_REFRESH ? 0 : SEAL_BYTES), SEAL_BYTES))
		return ST_INVALID;
	for (size_t i = TEXT_HEAD; i < n; i++)
		if (p[i] != p[i - (TEXT_HEAD - 3)])
			return ST_INVALID;
	*r = s->realms[realm];
	*family = fam;
	*gen = g;
	return 0;
}

static void family_issue(struct realm *r, struct family *f)
{
	f->gen++;
	f->at_expires_us = sys_wall_us() + r->at_ttl_s * US_PER_S;
}

void family_revoke(struct realm *r, uint32_t family)
{
	struct family *f = &r->families[family];
	if (!f->revoked)
		r->stats.families_revoked++;
	f->revoked = true;
}

uint32_t family_live(const struct realm *r, uint32_t family)
{
	return r->mode == MODE_STATIC ? r->families[family].first : r->families[family].gen;
}

/* Spends the token. What was handed out is then generation `gen` of the family. */
enum outcome family_present(struct sim *s, struct realm *r, uint32_t family, uint32_t gen)
{
	struct family *f = &r->families[family];
	uint32_t now_ms = (uint32_t)((sys_mono_us() - s->start_us) / US_PER_MS);
	if (f->revoked)
		return OUT_REVOKED;
	if (r->mode == MODE_STATIC) {
		if (gen != f->first)
			return OUT_UNKNOWN;
		family_issue(r, f);
		return OUT_STATIC;
	}
	if (gen >= f->first && gen <= f->gen) {
		family_issue(r, f);
		f->parent = gen;
		f->first = f->gen;
		f->grace_until_ms = now_ms + (uint32_t)(r->grace_us / US_PER_MS);
		return OUT_ROTATED;
	}
	if (r->mode == MODE_GRACE && gen == f->parent && now_ms < f->grace_until_ms) {
		family_issue(r, f);
		return OUT_GRACE;
	}
	family_revoke(r, family);
	return OUT_REUSE;
}
