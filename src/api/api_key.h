/*
 * api_key - API keys that were seen lately, by their hash. Of the API only.
 *
 * Trusted for a few seconds; the bucket of a key's rate outlives that. A fixed number of them, the oldest makes room.
 */
#ifndef REFRESHD_API_KEY_H
#define REFRESHD_API_KEY_H

#include "api/api_priv.h"

struct api_keys *api_keys_new(void);
void api_keys_free(struct api_keys *k);
/* From memory: ST_NOT_FOUND when it has to be asked for (again). *app is borrowed until the next call. */
int api_keys_find(struct api_keys *k, const uint8_t hash[32], const char **app, unsigned *scopes) MUST_USE;
bool api_keys_known(struct api_keys *k, const uint8_t hash[32]); /* it was good lately, if not now */
/* The scopes that the words mean. */
unsigned api_keys_put(struct api_keys *k, const uint8_t hash[32], const char *app, const char *scopes);
void api_keys_drop(struct api_keys *k, const uint8_t hash[32]);
/* Takes one from the key's bucket; 0, or the microseconds until there is one. */
int64_t api_keys_take(struct api_keys *k, const uint8_t hash[32], double rate_per_s);

#endif
