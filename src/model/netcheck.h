/*
 * netcheck - may a webhook go to this address? The deny list against server-side request forgery.
 *
 * Judges the address that is really connected to, after name resolution, so that neither an odd spelling nor
 * a changed DNS answer gets around it. IPv4 inside IPv6 (mapped, compatible, 6to4, NAT64, Teredo) is judged as the IPv4 it is. Pure.
 */
#ifndef REFRESHD_MODEL_NETCHECK_H
#define REFRESHD_MODEL_NETCHECK_H

#include <stdbool.h>
#include <sys/socket.h>

bool netcheck_is_public(const struct sockaddr *sa);   /* globally routable unicast only */
bool netcheck_is_loopback(const struct sockaddr *sa); /* 127/8, ::1, mapped too */

#endif
