// SPDX-License-Identifier: MIT
#pragma once

// Tensors of the library: [heads, tokens, head_dim] of one sequence, used in place through explicit strides.

#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>
#include <butterfly/core/memory.hpp>

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

namespace butterfly {

/// Sizes of a [heads, tokens, head_dim] tensor.
struct heads_shape {
    index_t heads    = 0;
    index_t tokens   = 0;
    index_t head_dim = 0;

    friend constexpr bool operator==(heads_shape const&, heads_shape const&) noexcept = default;
};

/// Distances between neighbouring heads and tokens, in elements. The elements of one row are contiguous.
/// An engine's [tokens, heads, head_dim] is {.head = head_dim, .token = heads * head_dim}.
struct heads_strides {
    index_t head  = 0;
    index_t token = 0;

    friend constexpr bool operator==(heads_strides const&, heads_strides const&) noexcept = default;
};

namespace detail {

/// "[8, 4096, 64]", for messages.
[[nodiscard]] inline std::string to_text(heads_shape const& s) {
    return std::string("[") + std::to_string(s.heads) + ", " + std::to_string(s.tokens) + ", " +
           std::to_string(s.head_dim) + "]";
}

/// Number of elements; shape_error where a size is negative or the product does not fit.
[[nodiscard]] inline index_t checked_size(heads_shape const& s) {
    if (s.heads < 0 || s.tokens < 0 || s.head_dim < 0)
        fail<shape_error>("shape " + to_text(s) + " has a negative size");
    index_t const rows = try_multiply(s.heads, s.tokens);
    index_t const size = rows < 0 ? -1 : try_multiply(rows, s.head_dim);
    if (size < 0 || try_multiply(size, 8) < 0) fail<shape_error>("shape " + to_text(s) + " overflows");
    return size;
}

} // namespace detail

/// A tensor's address, type, shape and strides: what every front-door function needs to know of it.
struct tensor_ref {
    memory_ref memory{};
    element_type type = element_type::f32;
    heads_shape shape{};
    heads_strides strides{};
};

/// A non-owning view [heads, tokens, head_dim] of elements T (float, float16, bfloat16, or const of them).
template <class T>
    requires element<std::remove_const_t<T>>
class heads_view {
public:
    using value_type = std::remove_const_t<T>;

    heads_view() noexcept = default;

    /// A contiguous tensor. Throws shape_error where a size is negative or the size overflows.
    heads_view(T* data, heads_shape shape) : data_(data), shape_(shape), strides_(contiguous(shape)) {}

    /// A strided tensor. Throws shape_error as above.
    heads_view(T* data, heads_shape shape, heads_strides strides) : data_(data), shape_(shape), strides_(strides) {
        static_cast<void>(detail::checked_size(shape));
    }

    /// A view of const elements from one of mutable elements.
    operator heads_view<T const>() const noexcept requires(!std::is_const_v<T>) {
        return heads_view<T const>::unchecked(data_, shape_, strides_);
    }

    [[nodiscard]] T* data() const noexcept { return data_; }
    [[nodiscard]] heads_shape const& shape() const noexcept { return shape_; }
    [[nodiscard]] heads_strides const& strides() const noexcept { return strides_; }
    [[nodiscard]] index_t heads() const noexcept { return shape_.heads; }
    [[nodiscard]] index_t tokens() const noexcept { return shape_.tokens; }
    [[nodiscard]] index_t head_dim() const noexcept { return shape_.head_dim; }

    /// Row [head_dim] of one token. Indices are the caller's business.
    [[nodiscard]] std::span<T> row(index_t head, index_t token) const noexcept {
        return {data_ + head * strides_.head + token * strides_.token, static_cast<std::size_t>(shape_.head_dim)};
    }

    /// The tokens [first, first + count) of every head.
    [[nodiscard]] heads_view slice(index_t first, index_t count) const {
        if (first < 0 || count < 0 || first > shape_.tokens - count)
            detail::fail<shape_error>("slice: tokens [" + std::to_string(first) + ", " + std::to_string(first) + " + " +
                                      std::to_string(count) + ") of a view with " + std::to_string(shape_.tokens));
        heads_shape part = shape_;
        part.tokens      = count;
        return unchecked(data_ + first * strides_.token, part, strides_);
    }

    [[nodiscard]] memory_ref memory() const noexcept { return memory_ref(data_); }

    [[nodiscard]] tensor_ref describe() const noexcept {
        return {memory(), element_type_of<value_type>, shape_, strides_};
    }

    [[nodiscard]] static heads_view unchecked(T* data, heads_shape shape, heads_strides strides) noexcept {
        heads_view view;
        view.data_    = data;
        view.shape_   = shape;
        view.strides_ = strides;
        return view;
    }

private:
    static heads_strides contiguous(heads_shape const& shape) {
        bool const empty = detail::checked_size(shape) == 0; // and then tokens * head_dim may overflow all the same
        return {empty ? 0 : shape.tokens * shape.head_dim, shape.head_dim};
    }

    T* data_ = nullptr;
    heads_shape shape_{};
    heads_strides strides_{};
};

/// An owning, contiguous, zero-filled tensor [heads, tokens, head_dim], aligned to 64 bytes.
template <element T>
class heads_buffer {
public:
    heads_buffer() noexcept = default;

    explicit heads_buffer(heads_shape shape) : shape_(shape), size_(detail::checked_size(shape)) {
        if (size_ == 0) return;
        auto const bytes = static_cast<std::size_t>(size_) * sizeof(T);
        data_.reset(static_cast<T*>(::operator new (bytes, std::align_val_t{64})));
        for (index_t i = 0; i < size_; ++i) ::new (static_cast<void*>(data_.get() + i)) T{};
    }

    heads_buffer(heads_buffer const& other) : heads_buffer(other.shape_) {
        for (index_t i = 0; i < size_; ++i) data_.get()[i] = other.data_.get()[i];
    }
    heads_buffer(heads_buffer&& other) noexcept { swap(other); }
    heads_buffer& operator=(heads_buffer other) noexcept {
        swap(other);
        return *this;
    }
    ~heads_buffer() = default;

    void swap(heads_buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(shape_, other.shape_);
        std::swap(size_, other.size_);
    }

    [[nodiscard]] heads_shape const& shape() const noexcept { return shape_; }
    [[nodiscard]] std::span<T> values() noexcept { return {data_.get(), static_cast<std::size_t>(size_)}; }
    [[nodiscard]] std::span<T const> values() const noexcept { return {data_.get(), static_cast<std::size_t>(size_)}; }
    [[nodiscard]] heads_view<T> view() & { return {data_.get(), shape_}; }
    [[nodiscard]] heads_view<T const> view() const& { return {data_.get(), shape_}; }
    heads_view<T> view() && = delete;

private:
    struct release {
        void operator()(T* p) const noexcept { ::operator delete (static_cast<void*>(p), std::align_val_t{64}); }
    };
    std::unique_ptr<T, release> data_;
    heads_shape shape_{};
    index_t size_ = 0;
};

} // namespace butterfly
