#include "tokenizer_import.h"

#include "src/split.h"
#include "src/vocabulary.h"

/* ---- added tokens ---- */

/* Looks a text up among pieces or added tokens; sets its *index there. */
static bool import_find(const tc__buf *strings, const char *text, size_t len, uint32_t *index) {
    tc__cursor cursor = tc__cursor_make(strings->data, strings->len);
    const char *piece;
    size_t piece_len;
    for (uint32_t i = 0; tc__next_string(&cursor, &piece, &piece_len); i++)
        if (piece_len == len && memcmp(piece, text, len) == 0) {
            *index = i;
            return true;
        }
    return false;
}

static uint32_t import_added_id(const tokenizer_import *import, uint32_t index) {
    uint32_t id;
    memcpy(&id, import->added_ids.data + (size_t)index * sizeof id, sizeof id);
    return id;
}

int64_t tokenizer_import_lookup(const tokenizer_import *import, const tc__buf *text) {
    uint32_t index;
    const char *bytes = text->data ? text->data : "";
    if (import_find(&import->added, bytes, text->len, &index))
        return import_added_id(import, index);
    if (import_find(&import->pieces, bytes, text->len, &index)) return index;
    return -1;
}

int tokenizer_import_add(tokenizer_import *import, uint32_t vocab_size, int64_t id,
                         const tc__buf *text, uint8_t flags, tc__buf *notes, tc_error *err) {
    uint32_t index;
    if (text->failed) return tc__fail_memory(err, "an added token", text->len);
    if (text->len == 0) return TC_OK;
    if (id < 0 || id >= vocab_size) {
        tc__buf_printf(notes,
                       "added token '%.80s' with id %lld lies outside the model's %u embeddings: "
                       "left out\n",
                       text->data, (long long)id, (unsigned)vocab_size);
        return TC_OK;
    }
    /* control and unknown pieces of SentencePiece are special anyway */
    if (!import->has_merges && id < import->count &&
        (import->types.data[id] == TC__PIECE_CONTROL ||
         import->types.data[id] == TC__PIECE_UNKNOWN) &&
        import_find(&import->pieces, text->data, text->len, &index) && index == (uint32_t)id)
        return TC_OK;
    if (import_find(&import->added, text->data, text->len, &index)) {
        if (import_added_id(import, index) == (uint32_t)id) return TC_OK;
        return tc__fail(err, TC_ERR_FORMAT, "added token '%.80s' has two ids: %u and %lld",
                        text->data, (unsigned)import_added_id(import, index), (long long)id);
    }
    uint32_t number = (uint32_t)id;
    writer_add_string(&import->added, text->data, text->len);
    tc__buf_add(&import->added_ids, &number, sizeof number);
    tc__buf_add(&import->added_flags, &flags, sizeof flags);
    import->added_count++;
    return TC_OK;
}

bool tokenizer_import_is_added(const tokenizer_import *import, const tc__buf *text) {
    uint32_t index;
    return import_find(&import->added, text->data ? text->data : "", text->len, &index);
}

/* ---- metadata ---- */

static void import_meta(tokenizer_metas *m, const char *key, uint32_t type, size_t count,
                        const void *value, size_t size) {
    m->metas[m->count++] = (tc__meta){key, strlen(key), type, count, value, size};
}

static void import_meta_text(tokenizer_metas *m, const char *key, const char *text, size_t len) {
    import_meta(m, key, TC__META_BYTES, len, text, len);
}

void tokenizer_import_metas(const tokenizer_import *import, tokenizer_metas *m) {
    const struct {
        const char *key;
        int64_t value; /* -1: none */
    } numbers[] = {
        {"tokenizer.unk_id", import->unk_id},
        {"tokenizer.bos_id", import->bos_id},
        {"tokenizer.eos_id", import->eos_id},
        {"tokenizer.add_bos", import->add_bos},
        {"tokenizer.dummy_prefix", import->dummy_prefix},
        {"tokenizer.legacy", import->legacy},
        {"tokenizer.nfc", import->nfc ? 1 : -1},
        {"tokenizer.ignore_merges", import->ignore_merges ? 1 : -1},
        {"tokenizer.single_prefix", import->single_prefix ? 1 : -1},
    };
    const char *alphabet = import->bytes ? "bytes" : "characters";
    const char *split = tc__split_name(import->split);
    m->count = 0;
    import_meta_text(m, "tokenizer.type", import->has_merges ? "bpe" : "spm-bpe",
                     import->has_merges ? 3 : 7);
    import_meta(m, "tokenizer.pieces", TC__META_STRINGS, import->count, import->pieces.data,
                import->pieces.len);
    if (import->has_merges) {
        import_meta_text(m, "tokenizer.alphabet", alphabet, strlen(alphabet));
        import_meta_text(m, "tokenizer.split", split, strlen(split));
        import_meta(m, "tokenizer.merges", TC__META_U32, 3 * (size_t)import->merge_count,
                    import->merges.data, import->merges.len);
    } else {
        import_meta(m, "tokenizer.scores", TC__META_F32, import->count, import->scores.data,
                    import->scores.len);
    }
    import_meta_text(m, "tokenizer.types", import->types.data, import->types.len);
    for (size_t i = 0; i < TC_COUNT(numbers); i++) {
        m->numbers[i] = (uint32_t)numbers[i].value;
        if (numbers[i].value >= 0)
            import_meta(m, numbers[i].key, TC__META_U32, 1, &m->numbers[i], sizeof m->numbers[i]);
    }
    import_meta_text(m, "tokenizer.unk_surface", import->unk_surface.data, import->unk_surface.len);
    if (!import->added_count) return;
    import_meta(m, "tokenizer.added_ids", TC__META_U32, import->added_count, import->added_ids.data,
                import->added_ids.len);
    import_meta(m, "tokenizer.added_pieces", TC__META_STRINGS, import->added_count,
                import->added.data, import->added.len);
    if (import->has_merges)
        import_meta(m, "tokenizer.added_flags", TC__META_BYTES, import->added_count,
                    import->added_flags.data, import->added_flags.len);
}

int tokenizer_import_open(const tokenizer_import *import, uint32_t vocab_size,
                          tc__tokenizer **tokenizer, tc_error *err) {
    tokenizer_metas metas;
    tc__model_file file;
    memset(&file, 0, sizeof file);
    tokenizer_import_metas(import, &metas);
    file.metas = metas.metas;
    file.meta_count = metas.count;
    return tc__tokenizer_open(&file, vocab_size, tokenizer, err);
}

void tokenizer_import_free(tokenizer_import *import) {
    tc__buf_free(&import->pieces);
    tc__buf_free(&import->scores);
    tc__buf_free(&import->types);
    tc__buf_free(&import->added);
    tc__buf_free(&import->added_ids);
    tc__buf_free(&import->added_flags);
    tc__buf_free(&import->merges);
    tc__buf_free(&import->unk_surface);
}

void tokenizer_import_write(const tokenizer_import *import, writer *w) {
    if (!import) {
        writer_text(w, "tokenizer.type", "none", 4);
        return;
    }
    tokenizer_metas metas;
    tokenizer_import_metas(import, &metas);
    for (size_t i = 0; i < metas.count; i++) writer_meta(w, &metas.metas[i]);
}
