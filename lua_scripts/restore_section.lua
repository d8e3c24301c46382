-- restore_section: keys that were laid down take the place of others, all in one step; sent twice, it happens once.
--
-- KEYS[1...] in pairs: KEYS[1] was laid down and takes the place of KEYS[2], and so on
-- ARGV[1] for how many ms they are kept; 0: for ever
-- ARGV[2...] per pair: `r` to replace, `u` to remove what there is
-- returns: how many keys were put in place.
local done = 0
for i = 1, #KEYS, 2 do
  local staged, final, what = KEYS[i], KEYS[i + 1], ARGV[(i + 1) / 2 + 1]
  if what == 'u' then
    redis.call('UNLINK', final)
  elseif redis.call('EXISTS', staged) == 1 then
    redis.call('UNLINK', final)
    redis.call('RENAME', staged, final)
    if ARGV[1] == '0' then
      redis.call('PERSIST', final)
    else
      redis.call('PEXPIRE', final, ARGV[1])
    end
    done = done + 1
  end
end
return done
