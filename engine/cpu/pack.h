// From a file's tensor, or from one that lies in memory as a file has it, to panels.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "mlx/mlx.h"
#include "panels.h"

namespace puna {

// A plane of a tensor in an open file: descriptor, offset, bytes, and the table's word for its type ("f16", "u32"...).
using PlaneSpan = std::tuple<int, int64_t, int64_t, std::string>;

// Reads (rows, cols) in strips of 16 rows, so that memory peaks at the panels and a small scratch for each thread.
// GGUF blocks and dense tensors have one plane; affine ones have words, scales and biases. Throws std::runtime_error
// if a plane has not the size that the shape asks for, or if the file ends early. `format` is a name of the table.
std::shared_ptr<Panels> pack(const std::vector<PlaneSpan> &planes, const std::string &format, int64_t rows,
                             int64_t cols);

// The same panels from planes in memory, each evaluated and with its rows one behind the other; they are read where they lie.
// Blocks are bytes, words uint32; scales and dense values have their own type. With a room, that is where the panels are.
std::shared_ptr<Panels> pack_arrays(const std::vector<mlx::core::array> &planes, const std::string &format, int64_t rows,
                                    int64_t cols, Room *room);

}  // namespace puna
