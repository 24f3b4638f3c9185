// SPDX-License-Identifier: Apache-2.0
#include "record.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace bonsai::bench {

namespace {

std::string text(const char* format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return line;
}

struct Field {
    const char* name;
    std::string Record::* text;
    int Record::* count;
    double Record::* number;
};

// The order of columns in CSV and of members in JSON.
const Field kFields[] = {
    {"model", &Record::model, nullptr, nullptr},
    {"what", &Record::what, nullptr, nullptr},
    {"size", &Record::size, nullptr, nullptr},
    {"level", &Record::level, nullptr, nullptr},
    {"precision", &Record::precision, nullptr, nullptr},
    {"threads", nullptr, &Record::threads, nullptr},
    {"repeats", nullptr, &Record::repeats, nullptr},
    {"seconds", nullptr, nullptr, &Record::seconds},
    {"spread", nullptr, nullptr, &Record::spread},
    {"cpu_seconds", nullptr, nullptr, &Record::cpu_seconds},
    {"giga_ops", nullptr, nullptr, &Record::giga_ops},
    {"share", nullptr, nullptr, &Record::share},
    {"peak_megabytes", nullptr, nullptr, &Record::peak_megabytes},
};

std::string quoted(const std::string& value) {
    std::string out = "\"";
    for (const char c : value) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + "\"";
}

std::string value_of(const Record& record, const Field& field) {
    if (field.text) return quoted(record.*field.text);
    return field.count ? std::to_string(record.*field.count) : text("%.6g", record.*field.number);
}

// The text behind `"name": ` on a line of to_json; empty when it is not there.
std::string member(const std::string& line, const std::string& name) {
    const std::string label = quoted(name) + ": ";
    const size_t at = line.find(label);
    if (at == std::string::npos) return "";
    size_t from = at + label.size();
    if (line[from] != '"') return line.substr(from, line.find_first_of(",}", from) - from);
    std::string out;
    for (++from; from < line.size() && line[from] != '"'; ++from) {
        if (line[from] == '\\') ++from;
        if (from < line.size()) out += line[from];
    }
    return out;
}

std::string dash_or(const char* format, double value) {
    return value > 0 ? text(format, value) : "-";
}

} // namespace

std::string Record::key() const {
    return model + "|" + what + "|" + size + "|" + level + "|" + precision + "|" +
           std::to_string(threads);
}

std::string to_markdown(const std::vector<Record>& records, const std::vector<Record>& old) {
    std::string out = text("| %-44s | %-9s | %-7s | %3s | %9s | %6s | %8s | %7s | %5s | %7s |%s\n",
                           "what", "size", "level", "thr", "seconds", "spread", "CPU-s", "GOP/s",
                           "% top", "MB", old.empty() ? "" : "   old s | old/new |");
    out += std::string("|---|---|---|---|---|---|---|---|---|---|") +
           (old.empty() ? "" : "---|---|") + "\n";
    for (const Record& r : records) {
        out +=
            text("| %-44s | %-9s | %-7s | %3d | %9.4f | %5.1f%% | %8.3f | %7s | %5s | %7s |",
                 r.what.c_str(), r.size.c_str(), r.level.c_str(), r.threads, r.seconds,
                 100 * r.spread, r.cpu_seconds, dash_or("%.1f", r.rate()).c_str(),
                 dash_or("%.1f", 100 * r.share).c_str(), dash_or("%.0f", r.peak_megabytes).c_str());
        for (const Record& before : old) {
            if (before.key() != r.key()) continue;
            out += text(" %8.4f | %7.2f |", before.seconds, before.seconds / r.seconds);
            break;
        }
        out += "\n";
    }
    return out;
}

std::string to_csv(const std::vector<Record>& records) {
    std::string out;
    for (const Field& field : kFields)
        out += std::string(out.empty() ? "" : ",") + field.name;
    out += "\n";
    for (const Record& record : records) {
        std::string line;
        for (const Field& field : kFields)
            line += (line.empty() ? "" : ",") + value_of(record, field);
        out += line + "\n";
    }
    return out;
}

std::string to_json(const std::vector<Record>& records) {
    std::string out = "[\n";
    for (const Record& record : records) {
        std::string line;
        for (const Field& field : kFields)
            line +=
                (line.empty() ? "" : ", ") + quoted(field.name) + ": " + value_of(record, field);
        out += "{" + line + "}" + (&record == &records.back() ? "\n" : ",\n");
    }
    return out + "]\n";
}

bool read_json(const std::string& path, std::vector<Record>* out, std::string* why) {
    std::ifstream in(path);
    if (!in) return *why = path + ": cannot be read", false;
    std::string line;
    while (std::getline(in, line)) {
        if (line.empty() || line[0] != '{') continue;
        Record record;
        for (const Field& field : kFields) {
            const std::string value = member(line, field.name);
            if (value.empty())
                return *why = path + ": a row has no " + field.name +
                              "; expected a file written by bonsai-bench -o json",
                       false;
            if (field.text) record.*field.text = value;
            if (field.count) record.*field.count = std::atoi(value.c_str());
            if (field.number) record.*field.number = std::strtod(value.c_str(), nullptr);
        }
        out->push_back(record);
    }
    if (out->empty()) return *why = path + ": holds no rows of bonsai-bench", false;
    return true;
}

} // namespace bonsai::bench
