-- An entry's place in the index of the history: its id with both halves at full length, so that text order is time
-- order.
local function padded_id(id)
  local dash = string.find(id, '-', 1, true)
  return string.format('%015.0f-%010.0f', tonumber(string.sub(id, 1, dash - 1)), tonumber(string.sub(id, dash + 1)))
end
