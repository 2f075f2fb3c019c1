/* make_model - writes a model file of a built-in shape with random weights, for measuring how long
 * loading takes. It has no tokenizer.
 *
 *     build/release/bench/make_model llama-2-7b w4a16 model.bin
 */
#include "convert/writer.h"
#include "src/shapes.h"

static int fail(const tc_error *err) {
    fprintf(stderr, "make_model: %s\n", err->message);
    return 1;
}

static int write_model(const tc__model_file *file, const char *path, tc_error *err) {
    writer w;
    writer_init(&w);
    for (size_t i = 0; i < file->meta_count; i++) writer_meta(&w, &file->metas[i]);
    for (size_t i = 0; i < file->tensor_count; i++) {
        const tc__tensor *t = &file->tensors[i];
        writer_declare(&w, t->name, t->type, t->group_size, t->rows, t->columns);
    }
    int code = writer_begin(&w, path, err);
    for (size_t i = 0; i < file->tensor_count && !code; i++)
        code = writer_put(&w, file->tensors[i].data, file->tensors[i].size, err);
    if (!code) code = writer_finish(&w, err);
    writer_free(&w);
    return code;
}

int main(int argc, char **argv) {
    tc_model_params params = tc_model_default_params();
    tc__model_file file;
    tc_error err;
    if (argc != 4) {
        fprintf(stderr, "usage: make_model SHAPE w4a16|w16a16 FILE\n");
        return 2;
    }
    if (tc__shape_open(argv[1], argv[2], 0, true, &params, &file, &err)) return fail(&err);
    int code = write_model(&file, argv[3], &err);
    tc__model_file_close(&file);
    return code ? fail(&err) : 0;
}
