// SPDX-License-Identifier: Apache-2.0
// Memory runs out at every allocation of a small run in turn: once, and from there on. Each time
// the call says so or succeeds without it, leaves nothing behind, and the next picture is the same
// as ever. BONSAI_TEST_MODEL names another model file than the built-in tiny one,
// BONSAI_TEST_STRIDE=k fails every k-th allocation only.
#include "faults/inject.h"

#include <cstdlib>
#include <dirent.h>
#include <functional>
#include <sys/stat.h>
#include <thread>

#include "bonsai.h"
#include "core/gguf.h"
#include "core/sha256.h"
#include "support/tiny_model.h"
#include "test.h"

#ifdef FAULTS_INJECTABLE

// The tiny model with the hashes that a converter would have written.
static std::string model_bytes() {
    test::TinyModel model;
    const test::TempFile without(model.file().bytes());
    std::unique_ptr<bonsai::GgufFile> file;
    CHECK_OK(bonsai::GgufFile::open(without.path(), &file));
    std::vector<std::string> hashes;
    for (const bonsai::GgufTensor& tensor : file->tensors()) {
        bonsai::Sha256 sha;
        sha.update(file->data(tensor), tensor.bytes);
        hashes.push_back(sha.hex());
    }
    return model.file().text_array("bonsai.tensor_sha256", hashes).bytes();
}

static const char* model_path() {
    static const test::TempFile file(model_bytes());
    const char* other = std::getenv("BONSAI_TEST_MODEL");
    return other ? other : file.path().c_str();
}

// Some functions of the address sanitizer allocate past us; it looks for leaks itself.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kCounted = false;
#else
constexpr bool kCounted = true;
#endif

// With the sanitizer, which is slow, every third unless told otherwise.
static int64_t stride() {
    const char* text = std::getenv("BONSAI_TEST_STRIDE");
    return text ? std::max(1, std::atoi(text)) : kCounted ? 1 : 3;
}

static bonsai_status open_model(bonsai_context** ctx, int32_t threads = 2) {
    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.threads = threads;
    return bonsai_open(model_path(), &params, ctx);
}

static bonsai_generate_params request(const char* prompt) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = prompt;
    params.width = params.height = 32;
    params.steps = 2;
    params.preview_every = 2;
    params.on_step = [](const bonsai_step*, void*) -> int32_t { return 0; };
    return params;
}

// The pixels of a picture; empty when it failed, which is an error of the test.
static std::string draw(bonsai_context* ctx, const char* prompt) {
    const bonsai_generate_params params = request(prompt);
    bonsai_image image;
    if (bonsai_generate(ctx, &params, &image) != BONSAI_OK) {
        test::failed(__FILE__, __LINE__, bonsai_last_error());
        return "";
    }
    const std::string rgb(reinterpret_cast<char*>(image.rgb), 32 * 32 * 3);
    bonsai_image_free(&image);
    return rgb;
}

static std::string read_file(const std::string& path) {
    std::string bytes;
    if (std::FILE* file = std::fopen(path.c_str(), "rb")) {
        char buffer[4096];
        while (const size_t n = std::fread(buffer, 1, sizeof buffer, file))
            bytes.append(buffer, n);
        std::fclose(file);
    }
    return bytes;
}

static int files_in(const std::string& folder) {
    int count = 0;
    if (DIR* entries = opendir(folder.c_str())) {
        while (const dirent* entry = readdir(entries))
            count += entry->d_name[0] != '.' || std::strlen(entry->d_name) > 2;
        closedir(entries);
    }
    return count;
}

struct Tally {
    int64_t allocations = 0, refused = 0, tolerated = 0;
};

// Runs `call` with each of its allocations failing, `undo` after those that succeeded, `check`
// after all. With `settled` the number of allocated blocks has to be the same afterwards: a context
// of several threads takes scratch memory for each when it first needs it.
static Tally starve(const char* what, const std::function<bonsai_status()>& call,
                    const std::function<void()>& undo, const std::function<void()>& check,
                    bool settled = true) {
    (void)call(), undo(), check(); // fills caches that stay
    faults::memory.arm(0);
    CHECK(call() == BONSAI_OK);
    Tally tally;
    tally.allocations = faults::memory.disarm();
    undo(), check();
    const int64_t baseline = faults::live();
    for (const bool onwards : {false, true}) {
        for (int64_t n = 1; n <= tally.allocations; n += stride()) {
            faults::memory.arm(n, onwards);
            const bonsai_status status = call();
            faults::memory.disarm();
            if (status == BONSAI_OK) {
                undo();
                tally.tolerated += faults::memory.failed() > 0;
            } else {
                ++tally.refused;
                if (status != BONSAI_ERR_MEMORY || bonsai_last_error()[0] == 0)
                    test::failed(__FILE__, __LINE__,
                                 what + (" " + std::to_string(n)) + (onwards ? " on: " : ": ") +
                                     bonsai_status_text(status) + ": " + bonsai_last_error());
            }
            check();
            if (settled && kCounted && faults::live() != baseline)
                test::failed(__FILE__, __LINE__,
                             what + (" " + std::to_string(n)) +
                                 ": blocks left: " + std::to_string(faults::live() - baseline));
        }
    }
    std::printf("%s: %lld allocations, %lld times refused, %lld times done without\n", what,
                static_cast<long long>(tally.allocations), static_cast<long long>(tally.refused),
                static_cast<long long>(tally.tolerated));
    return tally;
}

static void nothing() {}

TEST(opening) {
    bonsai_context* ctx = nullptr;
    const auto close = [&] { bonsai_close(ctx), ctx = nullptr; };
    const Tally tally =
        starve("open", [&] { return open_model(&ctx); }, close, [&] { CHECK(ctx == nullptr); });
    CHECK(tally.allocations > 1000 && tally.refused > tally.tolerated);
    CHECK(open_model(&ctx) == BONSAI_OK);
    const std::string first = draw(ctx, "a tree");
    close();
    CHECK(open_model(&ctx) == BONSAI_OK && draw(ctx, "a tree") == first);
    close();
}

TEST(drawing) {
    for (const int32_t threads : {1, 2}) {
        bonsai_context* ctx = nullptr;
        CHECK(open_model(&ctx, threads) == BONSAI_OK);
        const std::string expected = draw(ctx, "after");
        bonsai_image image{};
        // Another prompt than that of the check, as an encoded prompt is kept.
        const bonsai_generate_params params = request("a tree");
        const auto call = [&] { return bonsai_generate(ctx, &params, &image); };
        const auto check = [&] {
            CHECK(image.rgb == nullptr && image.metadata == nullptr);
            CHECK(draw(ctx, "after") == expected);
        };
        const Tally tally =
            starve("generate", call, [&] { bonsai_image_free(&image); }, check, threads == 1);
        CHECK(tally.allocations > 200 && tally.refused > tally.tolerated);
        bonsai_close(ctx);
    }
}

// What is made at the first use and stays, too.
TEST(the_first_picture) {
    bonsai_context* ctx = nullptr;
    CHECK(open_model(&ctx, 1) == BONSAI_OK);
    const std::string expected = draw(ctx, "a tree");
    bonsai_close(ctx);
    const bonsai_generate_params params = request("a tree");
    bool reached = true; // the allocation that was to fail
    int64_t n = 1;
    for (; reached; n += stride()) {
        CHECK(open_model(&ctx, 1) == BONSAI_OK);
        bonsai_image image;
        faults::memory.arm(n);
        (void)bonsai_generate(ctx, &params, &image);
        faults::memory.disarm();
        reached = faults::memory.failed() > 0;
        bonsai_image_free(&image);
        CHECK(draw(ctx, "a tree") == expected);
        bonsai_close(ctx);
    }
    CHECK(n > 200);
}

TEST(parts_of_the_pipeline) {
    bonsai_context* ctx = nullptr;
    CHECK(open_model(&ctx, 1) == BONSAI_OK);
    bonsai_model_info info;
    info.struct_size = sizeof info;
    CHECK(bonsai_model_get_info(ctx, &info) == BONSAI_OK);
    std::vector<float> rows(static_cast<size_t>(info.max_tokens) * info.prompt_width), first;
    const auto encode = [&] { return bonsai_prompt_encode(ctx, "ab", rows.data(), rows.size()); };
    CHECK(encode() == BONSAI_OK);
    first = rows;
    starve("encode", encode, nothing, nothing);
    CHECK(encode() == BONSAI_OK && rows == first);
    int32_t ids[16], count = 0;
    starve(
        "tokenize", [&] { return bonsai_prompt_tokenize(ctx, "a b c", ids, 16, &count); }, nothing,
        nothing);
    bonsai_memory_plan plan;
    plan.struct_size = sizeof plan;
    starve("plan", [&] { return bonsai_plan_memory(ctx, 32, 32, &plan); }, nothing, nothing);
    bonsai_close(ctx);
}

TEST(files_and_devices) {
    char* text = nullptr;
    const auto release = [&] { bonsai_free(text), text = nullptr; };
    for (const int32_t json : {0, 1})
        starve(
            "describe", [&] { return bonsai_file_describe(model_path(), json, &text); }, release,
            [&] { CHECK(text == nullptr); });
    starve(
        "verify", [] { return bonsai_file_verify(model_path(), nullptr, nullptr); }, nothing,
        nothing);
    bonsai_device_info device;
    device.struct_size = sizeof device;
    starve("device", [&] { return bonsai_device_get_info(0, &device); }, nothing, nothing);
}

TEST(pictures) {
    char folder[] = "/tmp/bonsai-faults-XXXXXX";
    CHECK(mkdtemp(folder) != nullptr);
    const std::string path = std::string(folder) + "/a.png", old = "an older file";
    bonsai_context* ctx = nullptr;
    CHECK(open_model(&ctx) == BONSAI_OK);
    const bonsai_generate_params params = request("a tree");
    bonsai_image image;
    CHECK(bonsai_generate(ctx, &params, &image) == BONSAI_OK);
    bonsai_close(ctx);

    uint8_t* png = nullptr;
    size_t size = 0;
    const auto encode = [&] { return bonsai_image_encode_png(&image, &png, &size); };
    const auto release = [&] { bonsai_free(png), png = nullptr; };
    starve("encode PNG", encode, release, [&] { CHECK(png == nullptr); });
    CHECK(encode() == BONSAI_OK);
    const std::string whole(reinterpret_cast<char*>(png), size);
    release();

    const auto save = [&] { return bonsai_image_save_png(&image, path.c_str()); };
    const auto remove = [&] { CHECK(std::remove(path.c_str()) == 0); };
    starve("save new", save, remove, [&] { CHECK(files_in(folder) == 0); });
    // Over an older file: that one or the whole new one, never less.
    const auto restore = [&] {
        if (std::FILE* file = std::fopen(path.c_str(), "wb")) {
            std::fwrite(old.data(), 1, old.size(), file);
            std::fclose(file);
        }
    };
    restore();
    const auto replaced = [&] {
        CHECK(read_file(path) == whole);
        restore();
    };
    starve("save over", save, replaced,
           [&] { CHECK(files_in(folder) == 1 && read_file(path) == old); });

    CHECK(save() == BONSAI_OK);
    char* metadata = nullptr;
    const auto read = [&] { return bonsai_png_read_metadata(path.c_str(), &metadata); };
    const auto drop = [&] { bonsai_free(metadata), metadata = nullptr; };
    starve("read metadata", read, drop, [&] { CHECK(metadata == nullptr); });
    remove();
    CHECK(rmdir(folder) == 0);
    bonsai_image_free(&image);
}

// The first failure of a thread, when there is no memory for anything any more.
TEST(errors_need_no_memory) {
    bonsai_status status = BONSAI_OK;
    std::string message;
    (void)model_path(); // made now
    std::thread fresh([&] {
        bonsai_context* ctx = nullptr;
        faults::memory.arm(1, true);
        status = open_model(&ctx);
        faults::memory.disarm();
        message = bonsai_last_error();
    });
    fresh.join();
    CHECK(status == BONSAI_ERR_MEMORY && message == "out of memory");
}

#else

TEST(skipped_as_this_system_has_no_glibc) {
    CHECK(bonsai_last_error()[0] == 0);
}

#endif
