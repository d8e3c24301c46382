--- @include "lib/scope"
-- Lists, maps and large values: the record is a head (count 4, bytes 6, generation), the elements lie in a sibling key.
local NUMBER, LIST, MAP, BLOB = 2, 3, 4, 5
local CRITICAL, SENSITIVE, EXTERNAL = 1, 5, 6

-- count, bytes and generation of a head
local function read_head(r, start)
  return u32(r, start), u48(r, start + 4), sub(r, start + 10)
end

local function build_head(count, size, generation)
  return p32(count) .. p48(size) .. generation
end

-- Whether a record has a class that its writer must know and did not: one whose writes wait longer, or whose elements
-- are encrypted or checked.
local HEEDED = { [CRITICAL] = true, [SENSITIVE] = true, [EXTERNAL] = true }
local function is_other_class(record_class, given_class)
  return record_class ~= given_class and (HEEDED[record_class] or HEEDED[given_class])
end

local function generation_key(s, generation)
  return s.key .. ':p:' .. generation
end

local function add_generation(s, generation)
  redis.call('SADD', s.key .. ':g', generation)
end

local function element_bytes(r)
  if byte(r, 2) < COMPOSITE then
    return 0
  end
  local _, _, start = record_times(r)
  return u48(r, start + 4)
end
