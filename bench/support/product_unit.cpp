// SPDX-License-Identifier: MIT
#include "product_unit.hpp"

namespace bench {

std::string kernel_class_of(std::string const& plan) {
    for (char const* const name : {"stream", "tile"})
        if (plan.find(std::string(name) + " class") != std::string::npos) return name;
    return {};
}

std::string product_unit(product_units const& units, bf::element_type storage, std::string const& kernel_class) {
    using bf::backend::bf16_unit;
    bf16_unit const unit = storage == bf::element_type::bf16 ? units.bf16 : bf16_unit::fma;
    if (unit == bf16_unit::dot) return "dot_bf16_avx512";
    if (unit == bf16_unit::tile && kernel_class == "tile") return "amx_bf16_registers";
    if (units.vectors == "x86_v4") return "fma_f32_avx512";
    return units.vectors == "x86_v3" ? "fma_f32_avx2" : "fma_f32_build";
}

} // namespace bench
