/* SPDX-License-Identifier: Apache-2.0
 *
 * Draws one picture: generate MODEL.gguf PROMPT OUTPUT.png
 * The steps are those of the example at the top of bonsai.h, with a progress callback.
 *
 *     cc generate.c $(pkg-config --cflags --libs bonsai) -o generate
 */
#include <stdio.h>

#include "bonsai.h"

static int32_t show_progress(const bonsai_progress* p, void* user) {
    (void)user;
    if (p->stage == BONSAI_STAGE_DENOISE)
        fprintf(stderr, "\rstep %d of %d", (int)p->step, (int)p->steps);
    return 0;
}

int main(int argc, char** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL.gguf PROMPT OUTPUT.png\n", argv[0]);
        return 2;
    }
    bonsai_context* ctx;
    if (bonsai_open(argv[1], NULL, &ctx) != BONSAI_OK) {
        fprintf(stderr, "%s\n", bonsai_last_error());
        return 1;
    }
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = argv[2];
    params.seed = 42;
    params.on_progress = show_progress;

    bonsai_image image = {0};
    int ok = bonsai_generate(ctx, &params, &image) == BONSAI_OK &&
             bonsai_image_save_png(&image, argv[3]) == BONSAI_OK;
    fprintf(stderr, "\n%s\n", ok ? image.metadata : bonsai_last_error());
    bonsai_image_free(&image);
    bonsai_close(ctx);
    return ok ? 0 : 1;
}
