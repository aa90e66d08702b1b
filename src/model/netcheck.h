/*
 * netcheck - may a webhook go to this address? The deny list against server-side request forgery.
 *
 * Judges the address that is really connected to, after name resolution, so that neither an odd spelling nor
 * a changed DNS answer gets around it. IPv4 inside IPv6 is judged as the IPv4 it is where such an address is in honest
 * use (mapped, NAT64 64:ff9b::/96); the dead transition forms (compatible, 6to4, Teredo) and local NAT64 prefixes are
 * refused whole. Pure.
 */
#ifndef REFRESHD_MODEL_NETCHECK_H
#define REFRESHD_MODEL_NETCHECK_H

#include <stdbool.h>
#include <sys/socket.h>

bool netcheck_is_public(const struct sockaddr *sa);   /* globally routable unicast only */
bool netcheck_is_loopback(const struct sockaddr *sa); /* 127/8, ::1, mapped too */

#endif
