/*
 * ctl_instance - forget: a machine is lost for ever, and nobody needs to wait for it any longer.
 *
 * Must not: touch a daemon that is alive, or a lease under which a request may be out.
 */
#include "ctl/ctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "service/vault_ops.h"

int ctl_instance(struct ctl *c, int argc, char **argv)
{
	struct fault f = { 0 };
	int64_t leases = 0;
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 2, 2));
	if (strcmp(c->words[0], "forget") != 0)
		return ctl_usage(c, "instance: '%.40s' is not forget", c->words[0]);
	CTL_TRY(ctl_connect(c));
	if (vault_instance_forget(c->pg, c->words[1], &leases, &f) != 0)
		return ctl_fail("instance forget", &f);
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "name", c->words[1]);
		jsonw_int(&j.w, "leases", leases);
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	fputs("instance ", stdout);
	ctl_print_text(c->words[1]);
	printf(" is forgotten; %" PRId64 " connections that it had claimed may be taken over\n", leases);
	return CTL_OK;
}
