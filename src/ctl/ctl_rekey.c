/*
 * ctl_rekey - seal everything under the first key of the keyring, or only count what is sealed under which.
 *
 * Rows with a request out are left to it and looked at again; what stays is said, with what to do about it.
 */
#include "ctl/ctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "service/vault_rekey.h"

#define PASSES 5
#define PAUSE_US (2 * US_PER_S)

struct key_counts {
	struct ctl_listing l;
	const struct keyring *keyring;
	uint64_t strangers;
};

static int on_sealed(void *arg, const struct vault_sealed_count *x)
{
	struct key_counts *k = arg;
	const char *what = strcmp(x->key_id, keyring_first_id(k->keyring)) == 0 ? "first" : "old";
	if (!keyring_has(k->keyring, x->key_id)) {
		what = "not in the keyring";
		k->strangers += (uint64_t)x->n;
	}
	if (k->l.table != NULL) {
		ctl_table_cell(k->l.table, "%s", x->column);
		ctl_table_cell(k->l.table, "%s", x->key_id);
		ctl_table_cell(k->l.table, "%s", what);
		ctl_table_cell(k->l.table, "%" PRId64, x->n);
		return 0;
	}
	ctl_json_element_begin(&k->l.json);
	jsonw_object(&k->l.json.w, NULL);
	jsonw_str(&k->l.json.w, "column", x->column);
	jsonw_str(&k->l.json.w, "key_id", x->key_id);
	jsonw_str(&k->l.json.w, "key", what);
	jsonw_int(&k->l.json.w, "values", x->n);
	jsonw_object_end(&k->l.json.w);
	return ctl_json_element_end(&k->l.json) == CTL_OK ? 0 : ST_IO;
}

static int check(struct ctl *c)
{
	static const char *const headers[] = { "COLUMN", "KEY", "WHICH IS", "VALUES" };
	struct key_counts k = { .keyring = c->conf->keyring };
	struct fault f = { 0 };
	ctl_listing_begin(&k.l, c, headers, 4);
	int rc = vault_sealed_counts(c->pg, on_sealed, &k, &f);
	ctl_listing_end(&k.l);
	if (rc != 0)
		return ctl_fail("rekey --check", &f);
	if (k.strangers > 0)
		return ctl_complain("rekey --check: %" PRIu64 " values are sealed under keys that are not in the keyring", k.strangers);
	return CTL_OK;
}

static int on_batch(void *arg, const struct vault_rekey_counts *so_far)
{
	const struct ctl *c = arg;
	if (c->err_tty)
		fprintf(stderr, "\r\033[K%" PRIu64 " values sealed again", so_far->values);
	return ctl_interrupted ? ST_CANCELED : 0;
}

static int run_passes(struct ctl *c, struct vault_rekey_counts *k, struct fault *f)
{
	struct fault ignored;
	for (int i = 0; i < PASSES; i++) {
		if (i > 0 && pgsync_wait_notify(c->pg, PAUSE_US, &ignored) == ST_CLOSED)
			return fault_set(f, ST_CLOSED, "the connection to the database was lost");
		int rc = vault_rekey(c->pg, c->conf->keyring, on_batch, c, k, f);
		if (rc != 0)
			return rc;
		if (k->busy == 0)
			break;
	}
	return 0;
}

static int print_summary(const struct ctl *c, const struct vault_rekey_counts *k)
{
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "key_id", keyring_first_id(c->conf->keyring));
		jsonw_int(&j.w, "rows", (int64_t)k->rows);
		jsonw_int(&j.w, "values", (int64_t)k->values);
		jsonw_int(&j.w, "busy_rows", (int64_t)k->busy);
		jsonw_int(&j.w, "unopenable_values", (int64_t)k->unopenable);
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	printf("%" PRIu64 " values in %" PRIu64 " rows sealed again under key %s\n", k->values, k->rows, keyring_first_id(c->conf->keyring));
	return CTL_OK;
}

int ctl_rekey(struct ctl *c, int argc, char **argv)
{
	bool only_check = false;
	const struct ctl_opt opts[] = { { "check", CTL_FLAG, &only_check } };
	struct vault_rekey_counts k = { 0 };
	struct fault f = { 0 };
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 0, 0));
	CTL_TRY(ctl_connect(c));
	if (only_check)
		return check(c);
	ctl_catch_interrupt();
	int rc = run_passes(c, &k, &f);
	if (c->err_tty)
		fputs("\r\033[K", stderr);
	int status = print_summary(c, &k);
	if (rc == ST_CANCELED)
		return ctl_complain("rekey: interrupted; what is done stays done, run it again for the rest");
	if (rc != 0)
		return ctl_fail("rekey", &f);
	if (k.unopenable > 0)
		status = ctl_complain("rekey: %" PRIu64 " values cannot be opened: their key is not in the keyring, or they are damaged (rekey --check)", k.unopenable);
	if (k.busy > 0)
		status = ctl_complain("rekey: %" PRIu64 " rows were busy with a refresh; run it again before an old key is removed", k.busy);
	return status;
}
