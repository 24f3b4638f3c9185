// SPDX-License-Identifier: Apache-2.0
// A file that shrinks, grows, changes or vanishes while it is mapped, and the manners of the
// handler that makes this an error: it takes only what is its own.
#include "core/mapped_file.h"

#include "support/gguf_builder.h"
#include "test.h"

TEST(a_file_that_stays_is_read) {
    const test::TempFile file("abc");
    std::unique_ptr<bonsai::MappedFile> mapped;
    CHECK_OK(bonsai::MappedFile::open(file.path(), &mapped));
    char text[2] = {};
    CHECK_OK(mapped->read(1, 2, text));
    CHECK(mapped->size() == 3 && mapped->data()[0] == 'a' && text[0] == 'b' && text[1] == 'c');
    CHECK_OK(mapped->check());
    const test::TempFile empty("");
    CHECK_FAILS(bonsai::MappedFile::open(empty.path(), &mapped), bonsai::ErrorCode::kFormat,
                "the file is empty");
}

#ifndef _WIN32 // which lets nobody cut a mapped file

#include <chrono>
#include <csetjmp>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace bonsai;
using test::TempFile;

namespace {

const size_t kPage = static_cast<size_t>(::sysconf(_SC_PAGESIZE));

std::unique_ptr<MappedFile> map(const TempFile& file) {
    std::unique_ptr<MappedFile> mapped;
    CHECK_OK(MappedFile::open(file.path(), &mapped));
    return mapped;
}

void cut(const TempFile& file, size_t size) {
    CHECK(::truncate(file.path().c_str(), static_cast<off_t>(size)) == 0);
}

uint64_t sum(const MappedFile& file) {
    uint64_t total = 0;
    for (uint64_t i = 0; i < file.size(); ++i)
        total += file.data()[i];
    return total;
}

struct sigaction action_now() {
    struct sigaction action = {};
    ::sigaction(SIGBUS, nullptr, &action);
    return action;
}

volatile sig_atomic_t host_signals = 0;
sigjmp_buf host_jump;

void count_signal(int) {
    ++host_signals;
}
void jump_back(int) {
    siglongjmp(host_jump, 1);
}

// Installs a handler of the host program for one test.
class HostHandler {
  public:
    explicit HostHandler(void (*handler)(int)) {
        struct sigaction action = {};
        action.sa_handler = handler;
        action.sa_flags = SA_NODEFER;
        ::sigaction(SIGBUS, &action, &before_);
        host_signals = 0;
    }
    ~HostHandler() { ::sigaction(SIGBUS, &before_, nullptr); }

  private:
    struct sigaction before_;
};

} // namespace

TEST(a_file_that_shrinks_ends_in_an_error) {
    for (const size_t left : {size_t(0), size_t(1), kPage, 2 * kPage + 5}) {
        const TempFile file(std::string(4 * kPage, '\1'));
        const auto mapped = map(file);
        CHECK_OK(mapped->check());
        CHECK(sum(*mapped) == 4 * kPage);
        cut(file, left);
        CHECK(sum(*mapped) < 4 * kPage); // no signal
        CHECK_FAILS(mapped->check(), ErrorCode::kIo, file.path());
        CHECK_FAILS(mapped->check(), ErrorCode::kIo, "was cut");
        uint8_t byte = 0;
        CHECK_FAILS(mapped->read(4 * kPage - 1, 1, &byte), ErrorCode::kIo, "became shorter");
        // Also when the bytes come back: what was read meanwhile is lost.
        cut(file, 4 * kPage);
        CHECK_FAILS(mapped->check(), ErrorCode::kIo, "while in use");
    }
}

TEST(threads_that_read_a_shrinking_file_go_on) {
    const size_t size = 64 * kPage;
    const TempFile file(std::string(size, '\1'));
    const auto mapped = map(file);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            while (mapped->check().ok())
                CHECK(sum(*mapped) <= size);
            CHECK(sum(*mapped) <= size);
        });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    cut(file, kPage);
    for (std::thread& thread : threads)
        thread.join();
    CHECK_FAILS(mapped->check(), ErrorCode::kIo, "was cut");
}

TEST(a_file_that_is_written_to_is_noticed) {
    const TempFile file(std::string(100, '\1'));
    const auto mapped = map(file);
    const int fd = ::open(file.path().c_str(), O_WRONLY);
    const timespec times[2] = {{0, UTIME_OMIT}, {12345, 0}};
    CHECK(::pwrite(fd, "x", 1, 50) == 1 && ::futimens(fd, times) == 0);
    ::close(fd);
    CHECK_FAILS(mapped->check(), ErrorCode::kIo, "was written to while in use");
}

TEST(a_deleted_or_replaced_file_stays_usable) {
    const TempFile file(std::string(100, '\1')), other(std::string(10, '\2'));
    const auto mapped = map(file);
    CHECK(std::rename(other.path().c_str(), file.path().c_str()) == 0);
    CHECK(sum(*mapped) == 100);
    CHECK_OK(mapped->check());
    ::unlink(file.path().c_str());
    CHECK_OK(mapped->check());
}

TEST(what_is_no_file_is_refused_at_once) {
    const TempFile place("");
    ::unlink(place.path().c_str());
    std::unique_ptr<MappedFile> mapped;
    CHECK(::mkfifo(place.path().c_str(), 0600) == 0);
    CHECK_FAILS(MappedFile::open(place.path(), &mapped), ErrorCode::kIo, "not a regular file");
    CHECK_FAILS(MappedFile::open("/dev/zero", &mapped), ErrorCode::kIo, "not a regular file");
    CHECK_FAILS(MappedFile::open("/", &mapped), ErrorCode::kIo, "not a regular file");
}

TEST(the_handler_comes_and_goes_with_the_files) {
    const HostHandler host(count_signal);
    const TempFile a("a"), b("b");
    auto first = map(a);
    CHECK((action_now().sa_flags & SA_SIGINFO) != 0);
    auto second = map(b);
    first.reset();
    CHECK((action_now().sa_flags & SA_SIGINFO) != 0);
    second.reset();
    CHECK(action_now().sa_handler == count_signal);
}

TEST(signals_of_others_reach_the_handler_before) {
    const HostHandler host(count_signal);
    const TempFile file("a");
    const auto mapped = map(file);
    ::raise(SIGBUS); // sent, not from a read
    CHECK(host_signals == 1);
    CHECK_OK(mapped->check());
}

TEST(reads_of_other_mappings_reach_the_handler_before) {
    const HostHandler host(jump_back);
    const TempFile ours("a"), theirs(std::string(kPage, 'x'));
    const auto mapped = map(ours);
    const int fd = ::open(theirs.path().c_str(), O_RDONLY);
    const auto* data =
        static_cast<volatile const char*>(::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 0));
    cut(theirs, 0);
    volatile bool jumped = false;
    if (sigsetjmp(host_jump, 1) == 0)
        (void)data[0];
    else
        jumped = true;
    CHECK(jumped);
    CHECK_OK(mapped->check());
    ::munmap(const_cast<char*>(data), kPage);
    ::close(fd);
}

TEST(a_handler_installed_later_is_left_alone) {
    const HostHandler before(count_signal);
    const TempFile file("a");
    auto mapped = map(file);
    struct sigaction later = {}, ours = {};
    later.sa_handler = jump_back;
    ::sigaction(SIGBUS, &later, &ours);
    mapped.reset();
    CHECK(action_now().sa_handler == jump_back);
    // It goes: ours is back, without files, and passes everything on.
    ::sigaction(SIGBUS, &ours, nullptr);
    ::raise(SIGBUS);
    CHECK(host_signals == 1);
    map(file).reset();
    CHECK(action_now().sa_handler == count_signal);
}

TEST(the_environment_keeps_the_handler_away) {
    const HostHandler host(count_signal);
    ::setenv("BONSAI_SIGBUS", "off", 1);
    const TempFile file("a");
    const auto mapped = map(file);
    ::unsetenv("BONSAI_SIGBUS");
    CHECK(action_now().sa_handler == count_signal);
    cut(file, 0);
    CHECK_FAILS(mapped->check(), ErrorCode::kIo, "was cut"); // the size is still looked at
}

#endif
