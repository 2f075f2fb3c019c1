/* unicode - what tokenizers ask about characters: their class, and canonical composition (NFC).
 *
 * The tables (unicode_tables.h, generated) are lists of the code points at which something changes,
 * looked up by halving; ASCII takes a shortcut. No state, no allocation except into the buffer.
 */
#ifndef TC_UNICODE_H
#define TC_UNICODE_H

#include "base.h"

/* Classes of characters: \p{L}, \p{N}, and punctuation as the tokenizers package has it (\p{P} of
 * an older Unicode, and all of ASCII's). Spaces are Unicode's White_Space. */
enum {
    TC__CHAR_OTHER = 0,
    TC__CHAR_LETTER = 1,
    TC__CHAR_NUMBER = 2,
    TC__CHAR_PUNCTUATION = 3,
    TC__CHAR_SPACE = 8
};

TC_INTERNAL int tc__char_class(uint32_t code);

/* \w: letters, marks, decimal digits, connecting punctuation. */
TC_INTERNAL bool tc__char_is_word(uint32_t code);

/* Appends the canonical composition (NFC) of a valid UTF-8 text. Linear. Out of memory shows in
 * out->failed. */
TC_INTERNAL void tc__nfc(const char *text, size_t len, tc__buf *out);

#endif /* TC_UNICODE_H */
