-- compiled(text): a function that tells whether an event type is one that a pattern means: llmspell_dist/patterns.py in Lua.
local function compiled(text)
  if not string.find(text, '*', 1, true) then
    return function(event_type)
      return event_type == text
    end
  end
  local lua = string.gsub(text, '[^%w%*]', '%%%0')
  lua = string.gsub(lua, '%*$', '.+')
  lua = '^' .. string.gsub(lua, '%*', '[^.]+') .. '$'
  return function(event_type)
    return string.find(event_type, lua) ~= nil
  end
end
