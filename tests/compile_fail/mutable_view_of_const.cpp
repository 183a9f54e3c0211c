// SPDX-License-Identifier: MIT
// Keys and values are read: a view of const elements is not a place to write.
// expect: (conversion|no viable conversion|could not convert).*heads_view
#include <butterfly/core/heads.hpp>

namespace bf = butterfly;

void copy_view(bf::heads_view<float> writable, bf::heads_view<float const> readable) {
#ifdef BUTTERFLY_COMPILE_FAIL
    bf::heads_view<float> const view = readable;
#else
    bf::heads_view<float const> const view = writable;
#endif
    static_cast<void>(view);
    static_cast<void>(writable);
    static_cast<void>(readable);
}
