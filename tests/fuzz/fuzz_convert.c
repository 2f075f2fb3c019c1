/* Fuzzes a whole conversion. The input is a config.json, a checkpoint and, for 16-bit weights, AWQ
 * search results, with the line SPLIT between them. What convert accepts the engine must open. */
#include "driver.h"

#include "convert/convert.h"

#include <sys/stat.h>

static const char split[] = "\n--next file--\n";

/* Takes the bytes up to the next SPLIT, or all that are left. */
static const uint8_t *take_part(const uint8_t **data, size_t *size, size_t *part_size) {
    const uint8_t *part = *data;
    const size_t len = sizeof split - 1;
    size_t i = 0;
    while (i + len <= *size && memcmp(part + i, split, len)) i++;
    const bool last = i + len > *size;
    *part_size = last ? *size : i;
    *data += last ? *size : i + len;
    *size -= last ? *size : i + len;
    return part;
}

static void open_model(const char *path) {
    tc_model_params params = tc_model_default_params();
    tc_model *model = NULL;
    tc_error err;
    params.device = "cpu";
    params.threads = 1;
    /* not everything that can be converted can be computed */
    if (tc_model_open(path, &params, &model, &err) && err.code != TC_ERR_UNSUPPORTED) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
    tc_model_close(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char folder[240], config[260], weights[260], search[240], output[240];
    size_t config_size, weights_size;
    convert_options options;
    convert_summary summary;
    tc_error err;
    const uint8_t *config_text = take_part(&data, &size, &config_size);
    const uint8_t *weights_bytes = take_part(&data, &size, &weights_size);
    mkdir(fuzz_path(folder, "hf"), 0700);
    snprintf(config, sizeof config, "%s/config.json", folder);
    snprintf(weights, sizeof weights, "%s/model.safetensors", folder);
    fuzz_write(config, config_text, config_size);
    fuzz_write(weights, weights_bytes, weights_size);
    memset(&options, 0, sizeof options);
    options.hf = folder;
    options.output = fuzz_path(output, "model");
    options.no_tokenizer = true;
    if (size) {
        fuzz_write_checkpoint(fuzz_path(search, "search"), data, size);
        options.search = search;
    }
    int code = convert_run(&options, &summary, &err);
    if (code != err.code || (code && (!err.message[0] || access(output, F_OK) == 0))) abort();
    if (!code) open_model(output);
    unlink(output);
    if (size) unlink(search);
    unlink(config);
    unlink(weights);
    rmdir(folder);
    return 0;
}
