// SPDX-License-Identifier: Apache-2.0
// RawVector: a vector of numbers that are not set to zero before something is read into them; for
// megabytes, setting them costs as much as reading.
#pragma once

#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace bonsai {

template <typename T> struct RawAllocator : std::allocator<T> {
    template <typename U> struct rebind {
        using other = RawAllocator<U>;
    };
    template <typename U> void construct(U* at) noexcept { ::new (static_cast<void*>(at)) U; }
    template <typename U, typename... Args> void construct(U* at, Args&&... args) {
        ::new (static_cast<void*>(at)) U(std::forward<Args>(args)...);
    }
};

template <typename T> using RawVector = std::vector<T, RawAllocator<T>>;

} // namespace bonsai
