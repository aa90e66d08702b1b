/*
 * dev - `refreshd --dev`: a whole throwaway vault on this machine, for trying things out.
 */
#ifndef REFRESHD_DEV_H
#define REFRESHD_DEV_H

/* A private Postgres, a fresh keyring, application `dev` and its API key under `dir` (NULL: a temporary folder that is removed at the
 * end), then the daemon. Works as root, too (Postgres runs as another user then). Returns the exit code. */
int dev_run(const char *dir);

#endif
