/*
 * httpd_words - the reason phrase and the date of a reply.
 */
#ifndef REFRESHD_IO_HTTPD_WORDS_H
#define REFRESHD_IO_HTTPD_WORDS_H

const char *httpd_reason(int status); /* "Status" for one that is not known */
void httpd_date(char out[32]);	      /* now, RFC 9110 5.6.7 */

#endif
