// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-warm: what a picture takes once everything is in place: one process draws a picture
// for each line of a file and prints the medians of all but the first, which brings the weights.
//
//   bonsai-bench-warm MODEL DEVICE fast|exact WIDTHxHEIGHT STEPS PROMPTS.txt [FOLDER]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "bonsai.h"

namespace {

int failed(const char* what) {
    std::fprintf(stderr, "error: %s: %s\n", what, bonsai_last_error());
    return 1;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : 1e3 * values[values.size() / 2];
}

} // namespace

int main(int argc, char** argv) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    if (argc < 7 || std::sscanf(argv[4], "%dx%d", &params.width, &params.height) != 2) {
        std::fprintf(stderr, "usage: bonsai-bench-warm MODEL DEVICE fast|exact WIDTHxHEIGHT STEPS "
                             "PROMPTS.txt [FOLDER]\n");
        return 2;
    }
    params.steps = std::atoi(argv[5]);
    bonsai_open_params open;
    bonsai_open_params_init(&open);
    open.device = argv[2];
    open.precision =
        std::strcmp(argv[3], "exact") == 0 ? BONSAI_PRECISION_EXACT : BONSAI_PRECISION_FAST;
    bonsai_context* context = nullptr;
    if (bonsai_open(argv[1], &open, &context) != BONSAI_OK) return failed(argv[1]);
    std::ifstream prompts(argv[6]);
    std::vector<double> text, step, vae, total;
    uint64_t peak = 0;
    int number = 0;
    for (std::string prompt; std::getline(prompts, prompt); ++number) {
        params.prompt = prompt.c_str();
        params.seed = static_cast<uint64_t>(number);
        bonsai_image image;
        if (bonsai_generate(context, &params, &image) != BONSAI_OK) return failed(prompt.c_str());
        const bonsai_stats& s = image.stats;
        if (argc > 7) {
            const std::string path = std::string(argv[7]) + "/" + std::to_string(number) + ".png";
            if (bonsai_image_save_png(&image, path.c_str()) != BONSAI_OK)
                return failed(path.c_str());
        }
        peak = std::max({peak, s.text_encoder_peak, s.denoise_peak, s.vae_peak});
        if (number > 0) {
            text.push_back(s.text_encoder_seconds);
            step.push_back(s.denoise_seconds / params.steps);
            vae.push_back(s.vae_seconds);
            total.push_back(s.total_seconds);
        }
        bonsai_image_free(&image);
    }
    bonsai_close(context);
    std::printf("%s %s %s, %d steps, %d pictures: text encoder %.2f ms, step %.2f ms, vae %.2f ms, "
                "image %.2f ms, peak %.0f MB\n",
                argv[2], argv[3], argv[4], params.steps, number, median(text), median(step),
                median(vae), median(total), static_cast<double>(peak) * 1e-6);
    return 0;
}
