// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/table.h"

#include <cstdlib>
#include <new>

namespace bonsai::cpu {

Scratch::~Scratch() {
    ::operator delete(data_, std::align_val_t(64), std::nothrow);
}

void* Scratch::get(size_t bytes) {
    if (bytes <= size_) return data_;
    ::operator delete(data_, std::align_val_t(64), std::nothrow);
    data_ = ::operator new(bytes, std::align_val_t(64), std::nothrow);
    size_ = data_ ? bytes : 0;
    return data_;
}

static KernelTable build(Level level) {
    KernelTable table{};
    overlay_generic(table);
    if (level >= Level::kAvx2) overlay_avx2(table);
    return table;
}

const KernelTable& kernel_table(Level level) {
    static const KernelTable generic = build(Level::kGeneric);
    static const KernelTable avx2 = build(Level::kAvx2);
    return level == Level::kAvx2 ? avx2 : generic;
}

void overlay_generic(KernelTable& table) {
    table.level = "generic";
    overlay_generic_linear(table);
    overlay_generic_rows(table);
    overlay_generic_attention(table);
    overlay_generic_conv(table);
}

void overlay_avx2(KernelTable& table) {
    table.level = "avx2";
    overlay_avx2_linear(table);
    overlay_avx2_rows(table);
    overlay_avx2_attention(table);
    overlay_avx2_conv(table);
}

} // namespace bonsai::cpu
