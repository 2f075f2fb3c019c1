/* stream - see stream.h. */
#include "stream.h"

/* Drops the first n bytes of what is held, after showing them. */
static void stream_release(tc__stream *stream, size_t n, tc__buf *out) {
    if (!n) return;
    tc__buf_add(out, stream->held.data, n);
    stream->held.len -= n;
    memmove(stream->held.data, stream->held.data + n, stream->held.len);
}

/* Takes one whole character; if it completes stop strings, what is before the longest is shown. */
static void stream_character(tc__stream *stream, const char *bytes, size_t len, tc__buf *out) {
    size_t longest = 0;
    tc__buf *held = &stream->held;
    tc__buf_add(held, bytes, len);
    for (const char *const *stop = stream->stops; stop && *stop && !held->failed; stop++) {
        size_t n = strlen(*stop);
        if (n > longest && n <= held->len && !memcmp(held->data + held->len - n, *stop, n))
            longest = n;
    }
    if (longest) {
        stream_release(stream, held->len - longest, out);
        stream->stopped = true;
    }
}

/* How many of the held bytes, at their end, begin a stop string. */
static size_t stream_beginning(const tc__stream *stream) {
    const tc__buf *held = &stream->held;
    size_t longest = 0;
    for (const char *const *stop = stream->stops; stop && *stop; stop++) {
        size_t n = strlen(*stop);
        for (size_t k = n && n <= held->len ? n - 1 : n ? held->len : 0; k > longest; k--)
            if (!memcmp(held->data + held->len - k, *stop, k)) longest = k;
    }
    return longest;
}

/* Takes the characters that are whole, and malformed bytes, out of the unfinished ones. */
static void stream_partial(tc__stream *stream, bool at_end, tc__buf *out) {
    while (stream->n_partial && !stream->stopped) {
        uint32_t code;
        size_t n = tc__utf8_decode(stream->partial, stream->n_partial, &code);
        if (code != UINT32_MAX)
            stream_character(stream, stream->partial, n, out);
        else if (!at_end && tc__utf8_unfinished(stream->partial, stream->n_partial))
            return;
        else
            stream_character(stream, "\xEF\xBF\xBD", 3, out);
        stream->n_partial -= n;
        memmove(stream->partial, stream->partial + n, stream->n_partial);
    }
}

void tc__stream_init(tc__stream *stream, const char *const *stops) {
    memset(stream, 0, sizeof *stream);
    stream->stops = stops;
}

void tc__stream_free(tc__stream *stream) {
    tc__buf_free(&stream->held);
}

void tc__stream_feed(tc__stream *stream, const char *bytes, size_t len, tc__buf *out) {
    for (size_t i = 0; i < len && !stream->stopped; i++) {
        stream->partial[stream->n_partial++] = bytes[i];
        stream_partial(stream, false, out);
        stream_release(stream, stream->stopped ? 0 : stream->held.len - stream_beginning(stream),
                       out);
    }
    if (stream->held.failed) out->failed = true;
}

void tc__stream_end(tc__stream *stream, tc__buf *out) {
    stream_partial(stream, true, out);
    if (!stream->stopped) stream_release(stream, stream->held.len, out);
    if (stream->held.failed) out->failed = true;
}
