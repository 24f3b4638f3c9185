// SPDX-License-Identifier: Apache-2.0
// Where pictures go: names that do not exist yet, a check before hours of work, whole files only.
#pragma once

#include <optional>
#include <string>

#include "bonsai.h"

namespace bonsai::cli {

class Output {
  public:
    // Throws when nothing can be written there: found out before drawing, not after.
    Output(const std::optional<std::string>& path, int32_t images, bool json);

    // Writes one picture and returns its path, "-" for standard output.
    std::string save(const bonsai_image& image, const std::string& prompt) const;

  private:
    std::string save_new(const bonsai_image& image, const std::string& prompt) const;

    std::string folder_; // for new names; empty: path_ is the file
    std::string path_;
    bool numbered_ = false; // the seed goes into the name
    bool waits_ = false;    // path_ is a pipe or a device
};

} // namespace bonsai::cli
