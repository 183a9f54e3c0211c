// SPDX-License-Identifier: MIT
// libFuzzer harness: whatever the bytes, parse gives tensors that lie within them, or a format_error; what it gives is
// written and read back the same.
#include <butterfly/interop/safetensors.hpp>

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    namespace st     = butterfly::safetensors;
    auto const bytes = std::as_bytes(std::span(data, size));
    try {
        st::contents const file = st::parse(bytes);
        std::size_t total       = 0;
        bool writable           = true;
        for (st::tensor const& t : file.tensors) {
            if (t.data.size() > size - total) std::abort();
            total += t.data.size();
            writable &= t.type != st::dtype::other;
        }
        if (!writable) return 0;
        auto const again     = st::encode(file.tensors, file.metadata);
        st::contents const b = st::parse(again);
        if (b.tensors.size() != file.tensors.size() || b.metadata != file.metadata) std::abort();
        for (st::tensor const& t : file.tensors) {
            st::tensor const& same = b.at(t.name);
            if (same.type != t.type || same.shape != t.shape) std::abort();
            if (!std::equal(same.data.begin(), same.data.end(), t.data.begin(), t.data.end())) std::abort();
        }
    } catch (butterfly::format_error const&) {
    } catch (butterfly::shape_error const&) {
        // Shapes that parse accepts and encode does not would be a mistake; none is known.
        std::abort();
    }
    return 0;
}
