// SPDX-License-Identifier: Apache-2.0
// Calls of the system that fail: mapping and opening the model, each step of writing a picture, and
// starting threads.
#include "faults/inject.h"

#include <dirent.h>
#include <sys/stat.h>

#include "bonsai.h"
#include "support/tiny_model.h"
#include "test.h"

#ifdef FAULTS_INJECTABLE

static const char* model_path() {
    static const test::TempFile file(test::TinyModel().file().bytes());
    return file.path().c_str();
}

static bonsai_status open_model(int32_t threads, bonsai_context** ctx) {
    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.threads = threads;
    return bonsai_open(model_path(), &params, ctx);
}

static bonsai_image draw(bonsai_context* ctx) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = "a tree";
    bonsai_image image;
    if (bonsai_generate(ctx, &params, &image) != BONSAI_OK)
        test::failed(__FILE__, __LINE__, bonsai_last_error());
    return image;
}

static std::string pixels(bonsai_context* ctx) {
    bonsai_image image = draw(ctx);
    const std::string rgb(reinterpret_cast<char*>(image.rgb), image.rgb ? 32 * 32 * 3 : 0);
    bonsai_image_free(&image);
    return rgb;
}

static bool last_error_says(const char* text) {
    return std::strstr(bonsai_last_error(), text) != nullptr;
}

TEST(a_model_that_cannot_be_opened_or_mapped) {
    bonsai_context* ctx = nullptr;
    faults::map.arm(1);
    CHECK(open_model(2, &ctx) == BONSAI_ERR_MEMORY && ctx == nullptr);
    CHECK(faults::map.disarm() == 1 && last_error_says("cannot be mapped"));
    faults::open_file.arm(1);
    CHECK(open_model(2, &ctx) == BONSAI_ERR_IO && ctx == nullptr);
    faults::open_file.disarm();
    CHECK(last_error_says(model_path()) && last_error_says("cannot be opened"));
    CHECK(open_model(2, &ctx) == BONSAI_OK);
    CHECK(pixels(ctx).size() == 32 * 32 * 3);
    bonsai_close(ctx);
}

// An encoder that fails gives its weights back like one that succeeds, and a limit is kept.
TEST(encoding_a_prompt_cleans_up) {
    bonsai_context* ctx = nullptr;
    CHECK(open_model(1, &ctx) == BONSAI_OK);
    std::vector<float> rows(24 * 128);
    const auto encode = [&] { return bonsai_prompt_encode(ctx, "ab", rows.data(), rows.size()); };
    CHECK(encode() == BONSAI_OK);
    faults::memory.arm(0), faults::advise.arm(0);
    CHECK(encode() == BONSAI_OK);
    const int64_t allocations = faults::memory.disarm(), given_back = faults::advise.disarm();
    CHECK(given_back > 0);
    faults::memory.arm(allocations), faults::advise.arm(0);
    CHECK(encode() == BONSAI_ERR_MEMORY);
    faults::memory.disarm();
    CHECK(faults::advise.disarm() == given_back);
    bonsai_close(ctx);

    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.max_memory = 100000;
    CHECK(bonsai_open(model_path(), &params, &ctx) == BONSAI_OK);
    CHECK(encode() == BONSAI_ERR_MEMORY && last_error_says("encoding a prompt needs"));
    CHECK(last_error_says("raise the limit"));
    bonsai_close(ctx);
}

// Asked for, a number of threads is an order; left to the engine, fewer do.
TEST(threads_that_the_system_refuses) {
    bonsai_context* ctx = nullptr;
    CHECK(open_model(0, &ctx) == BONSAI_OK);
    const std::string expected = pixels(ctx);
    bonsai_close(ctx);
    for (int n = 1; n <= 3; ++n) {
        faults::thread.arm(n, true);
        CHECK(open_model(4, &ctx) == BONSAI_ERR_MEMORY && ctx == nullptr);
        CHECK(faults::thread.disarm() == n);
        CHECK(last_error_says("cannot start thread") && last_error_says("fewer threads"));
        CHECK(last_error_says(("thread " + std::to_string(n + 1) + " of 4").c_str()));
    }
    faults::thread.arm(1, true);
    CHECK(open_model(0, &ctx) == BONSAI_OK);
    faults::thread.disarm();
    CHECK(pixels(ctx) == expected);
    bonsai_close(ctx);
}

struct Folder {
    char path[32] = "/tmp/bonsai-faults-XXXXXX";
    Folder() { CHECK(mkdtemp(path) != nullptr); }
    ~Folder() { CHECK(rmdir(path) == 0); }
    int files() const {
        int count = 0;
        if (DIR* entries = opendir(path)) {
            while (const dirent* entry = readdir(entries))
                count += std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..");
            closedir(entries);
        }
        return count;
    }
};

TEST(each_step_of_writing_may_fail) {
    const Folder folder;
    const std::string path = std::string(folder.path) + "/a.png";
    bonsai_context* ctx = nullptr;
    CHECK(open_model(2, &ctx) == BONSAI_OK);
    bonsai_image image = draw(ctx);
    bonsai_close(ctx);
    const struct {
        faults::Fault* fault;
        int error;
        const char* message;
    } steps[] = {
        {&faults::open_file, EMFILE, "Too many open files"},
        {&faults::open_file, EROFS, "choose a folder that you may write to"},
        {&faults::write_file, ENOSPC, "free some space"},
        {&faults::write_file, EDQUOT, "quota"},
        {&faults::write_file, EIO, "cannot write"},
        {&faults::sync_file, ENOSPC, "free some space"},
        {&faults::sync_file, EIO, "cannot write"},
        {&faults::close_file, ENOSPC, "free some space"},
        {&faults::rename_file, EACCES, "choose a folder that you may write to"},
    };
    for (const auto& step : steps) {
        step.fault->arm(1, true, step.error);
        CHECK(bonsai_image_save_png(&image, path.c_str()) == BONSAI_ERR_IO);
        CHECK(step.fault->disarm() >= 1);
        CHECK(last_error_says(path.c_str()) && last_error_says(step.message));
        CHECK(folder.files() == 0);
    }
    // An interruption is none of these: the write goes on.
    faults::write_file.arm(1, false, EINTR);
    CHECK(bonsai_image_save_png(&image, path.c_str()) == BONSAI_OK);
    CHECK(faults::write_file.disarm() == 2 && folder.files() == 1);
    CHECK(std::remove(path.c_str()) == 0);
    bonsai_image_free(&image);
}

#else

TEST(skipped_as_this_system_has_no_glibc) {
    CHECK(bonsai_last_error()[0] == 0);
}

#endif
