// SPDX-License-Identifier: MIT
#include <butterfly/interop/safetensors.hpp>

#include "support/catch.hpp"

#include <filesystem>
#include <fstream>

namespace bf = butterfly;
namespace st = butterfly::safetensors;

namespace {

/// A file with this header and data.
std::vector<std::byte> file(std::string const& header, std::size_t data) {
    std::vector<std::byte> bytes(8 + header.size() + data);
    std::uint64_t const length = header.size();
    std::memcpy(bytes.data(), &length, 8);
    std::memcpy(bytes.data() + 8, header.data(), header.size());
    for (std::size_t i = 0; i < data; ++i) bytes[8 + header.size() + i] = static_cast<std::byte>(i);
    return bytes;
}

std::string message(std::vector<std::byte> const& bytes) {
    try {
        static_cast<void>(st::parse(bytes));
    } catch (bf::format_error const& e) {
        return e.what();
    }
    return "accepted";
}

} // namespace

TEST_CASE("tensors of four types survive a round trip", "[interop]") {
    std::vector<float> const a{1.5F, -2.0F, 3.25F, 0.0F, 1e-30F, 7.0F};
    std::vector<bf::float16> const b{bf::float16(0.5F)};
    std::vector<bf::bfloat16> const c;
    std::vector<std::int32_t> const d{-1, 2147483647};
    st::tensor const tensors[] = {st::make_tensor<float>("a", {1, 2, 3}, a), st::make_tensor<bf::float16>("b", {}, b),
                                  st::make_tensor<bf::bfloat16>("c", {4, 0, 5}, c),
                                  st::make_tensor<std::int32_t>("d \"quoted\"", {2}, d)};
    auto const path            = (std::filesystem::temp_directory_path() / "butterfly_safetensors_test").string();
    st::save(path, tensors, {{"format", "pt"}});
    REQUIRE_FALSE(std::filesystem::exists(path + ".part"));
    auto const bytes = st::read_bytes(path);
    std::filesystem::remove(path);
    REQUIRE(bytes == st::encode(tensors, {{"format", "pt"}}));

    st::contents const read = st::parse(bytes);
    REQUIRE(read.tensors.size() == 4);
    REQUIRE(read.metadata == st::metadata_map{{"format", "pt"}});
    REQUIRE(st::values<float>(read.at("a")) == a);
    REQUIRE(st::values<bf::float16>(read.at("b"))[0].bits == b[0].bits);
    REQUIRE(st::values<bf::bfloat16>(read.at("c")).empty());
    REQUIRE(read.at("c").shape == std::vector<bf::index_t>{4, 0, 5});
    REQUIRE(st::values<std::int32_t>(read.at("d \"quoted\"")) == d);
    REQUIRE(read.find("e") == nullptr);
    REQUIRE_THROWS_AS(read.at("e"), bf::format_error);
    REQUIRE_THROWS_AS(st::values<float>(read.at("b")), bf::format_error);

    auto const heads = st::heads<float>(read.at("a"));
    REQUIRE(heads.shape() == bf::heads_shape{1, 2, 3});
    REQUIRE(heads.view().row(0, 1)[0] == 0.0F);
    REQUIRE(heads.view().row(0, 1)[2] == 7.0F);
    REQUIRE_THROWS_AS(st::heads<float>(st::make_tensor<float>("a", {6}, a)), bf::format_error);
    REQUIRE(st::heads<bf::bfloat16>(read.at("c")).shape() == bf::heads_shape{4, 0, 5});
    std::vector<float> const many(600);
    REQUIRE_THROWS_AS(st::heads<float>(st::make_tensor<float>("a", {1, 1, 1}, many)), bf::format_error);
    bf::index_t const big = bf::index_t{1} << 40;
    REQUIRE_THROWS_AS(st::heads<float>(st::make_tensor<float>("a", {big, big, 0}, {})), bf::format_error);
}

TEST_CASE("a tensor of another type is listed and not read", "[interop]") {
    auto const bytes = file(R"({"n":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}  )", 16);
    auto const read  = st::parse(bytes);
    REQUIRE(read.at("n").type == st::dtype::other);
    REQUIRE(read.at("n").data.size() == 16);
    REQUIRE_THROWS_AS(st::encode(read.tensors), bf::shape_error);
}

TEST_CASE("data need not be aligned", "[interop]") {
    auto bytes = file(R"({"n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4);
    bytes.insert(bytes.begin(), std::byte{});
    float const x = st::values<float>(st::parse(std::span(bytes).subspan(1)).at("n"))[0];
    REQUIRE(x == std::bit_cast<float>(0x03020100U));
}

TEST_CASE("a bad file is a format_error that says where", "[interop]") {
    struct bad_file {
        char const* header;
        std::size_t data;
        char const* wanted;
    };
    bad_file const files[] = {
        {"", 0, "no JSON object"},
        {"[]", 0, "no JSON object"},
        {"{", 0, "no JSON object"},
        {"{} x", 0, "no JSON object"},
        {R"({"a":1})", 0, "lacks"},
        {R"({"a":{"shape":[],"data_offsets":[0,4]}})", 4, "lacks"},
        {R"({"a":{"dtype":3,"shape":[],"data_offsets":[0,4]}})", 4, "another kind"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "another kind"},
        {R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})", 4, "unknown dtype"},
        {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "no count"},
        {R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4, "no count"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "stands at"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 4, "stands at"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "its shape needs 8"},
        {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "overflows"},
        {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,0]}})", 0, "no count"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "belong to no tensor"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})", 5, "leaves a hole"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
         6, "overlaps"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
         4, "twice"},
        {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "twice"},
        {R"({"__metadata__":{"a":1}})", 0, "more than text"},
        {R"({"__metadata__":[]})", 0, "no object"},
    };
    for (bad_file const& bad : files) {
        CAPTURE(bad.header);
        std::string const said = message(file(bad.header, bad.data));
        CAPTURE(said, bad.wanted);
        REQUIRE(said.find(bad.wanted) != std::string::npos);
    }
    REQUIRE(message(file("{}", 0)) == "accepted");
}

TEST_CASE("a header that nests deep is refused, not followed", "[interop]") {
    for (std::size_t const depth : {4, 1000, 1000000}) {
        std::string const nest = std::string(depth, '[') + std::string(depth, ']');
        REQUIRE(message(file(R"({"t":{"dtype":"F32","shape":)" + nest + R"(,"data_offsets":[0,0]}})", 0))
                    .find("nests deeper") != std::string::npos);
        REQUIRE(message(file(R"({"x":)" + nest + "}", 0)).find("nests deeper") != std::string::npos);
    }
}

TEST_CASE("a truncated file is a format_error at every length", "[interop]") {
    auto const whole = file(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4);
    REQUIRE(message(whole) == "accepted");
    for (std::size_t n = 0; n < whole.size(); ++n)
        REQUIRE(message({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)}) != "accepted");
    auto huge = whole;
    for (int i = 0; i < 8; ++i) huge[static_cast<std::size_t>(i)] = std::byte{0xff};
    REQUIRE(message(huge).find("a header of") != std::string::npos);
}

TEST_CASE("what cannot be written leaves the file as it was", "[interop]") {
    auto const path = (std::filesystem::temp_directory_path() / "butterfly_safetensors_kept").string();
    std::ofstream(path) << "kept";
    float const x            = 1.0F;
    st::tensor const wrong[] = {st::make_tensor<float>("a", {2}, std::span(&x, 1))};
    REQUIRE_THROWS_AS(st::save(path, wrong), bf::shape_error);
    REQUIRE(st::read_bytes(path).size() == 4);
    std::filesystem::remove(path);
    REQUIRE_THROWS_AS(st::save("/no/such/folder/x", {}), bf::format_error);
    REQUIRE_THROWS_AS(st::read_bytes("/no/such/folder/x"), bf::format_error);
    st::tensor const twice[] = {st::make_tensor<float>("a", {1}, std::span(&x, 1)),
                                st::make_tensor<float>("a", {1}, std::span(&x, 1))};
    REQUIRE_THROWS_AS(st::encode(twice), bf::shape_error);
}
