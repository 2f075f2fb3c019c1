/* stream - from raw reply bytes to text that may be shown: whole UTF-8 characters only, and nothing
 * that could still turn out to be the beginning of a stop string.
 */
#ifndef TC_STREAM_H
#define TC_STREAM_H

#include "base.h"

typedef struct tc__stream {
    const char *const *stops; /* NULL-terminated, not owned; NULL = none; "" is ignored */
    tc__buf held;             /* whole characters that begin a stop string */
    char partial[4];          /* [n_partial] the beginning of an unfinished character */
    size_t n_partial;
    bool stopped; /* a stop string was met; it and what follows is discarded */
} tc__stream;

TC_INTERNAL void tc__stream_init(tc__stream *stream, const char *const *stops);
TC_INTERNAL void tc__stream_free(tc__stream *stream);

/* Takes more raw bytes and appends to `out` the text that is safe to show. Malformed UTF-8 becomes
 * one U+FFFD per byte. Sets stream->stopped when a stop string is complete: the first one to be
 * complete counts, the longest of several that end at the same byte, so that the text does not
 * depend on how the bytes are cut into calls. Out of memory sets out->failed. */
TC_INTERNAL void tc__stream_feed(tc__stream *stream, const char *bytes, size_t len, tc__buf *out);

/* The end of the reply: releases what was held back (unfinished characters as U+FFFD per byte). */
TC_INTERNAL void tc__stream_end(tc__stream *stream, tc__buf *out);

#endif /* TC_STREAM_H */
