/*
 * gen_conf - prints what is generated from the table of options: "sample" or "man".
 *
 *   gen_conf sample > conf/refreshd.yaml
 *   gen_conf man          the OPTIONS part of docs/refreshd.yaml.5, between its two marks
 */
#include <stdio.h>
#include <string.h>

#include "model/conf.h"

int main(int argc, char **argv)
{
	struct buf out = BUF_INIT((size_t)1 << 20);
	int rc;

	if (argc == 2 && strcmp(argv[1], "sample") == 0) {
		rc = conf_sample(&out);
	} else if (argc == 2 && strcmp(argv[1], "man") == 0) {
		rc = conf_man(&out);
	} else {
		fprintf(stderr, "usage: gen_conf sample|man\n");
		return 2;
	}
	if (rc < 0)
		fprintf(stderr, "gen_conf: %s\n", status_text(rc));
	else if (fputs(buf_str(&out), stdout) == EOF || fflush(stdout) == EOF)
		rc = ST_IO;
	buf_fini(&out);
	return rc < 0 ? 1 : 0;
}
