// SPDX-License-Identifier: MIT
#include "ladder_qkv.hpp"

namespace bench {

qkv_geometry read_qkv_geometry(std::string const& path) {
    throw usage_error("--qkv {}: this program was built without a reader", path);
}

std::vector<qkv_layer> read_qkv(std::string const& path) {
    throw usage_error("--qkv {}: this program was built without a reader", path);
}

} // namespace bench
