import test from 'ava';
import { UsageError } from '../../../src/cli/command';
import { defaultSettings, parseMountArguments } from '../../../src/cli/commands/mount-options';
import { MIB } from '../../../src/units';

test('parseMountArguments() gives the defaults', (t) => {
  const { settings, positionals } = parseMountArguments(['a.qed', 'b.qed', '/mnt']);
  t.deepEqual(positionals, ['a.qed', 'b.qed', '/mnt']);
  t.deepEqual(settings, defaultSettings());
  t.true(settings.threads >= 4);
  t.is(settings.cacheSize, 32 * MIB);
  t.false(settings.readOnly);
});

test('every long option is an -o option too, with - or _', (t) => {
  const long = [
    '--read-only',
    '--format=qed',
    '--threads=8',
    '--session=native',
    '--cache-size=64M',
    '--backing=any',
    '--growable',
    '--kernel-cache',
    '--allow-other',
    '--force-share',
    '--share-rw',
    '--log=/tmp/x',
    '--foreground',
    '--debug',
  ];
  const { settings } = parseMountArguments([...long, 'a', 'm']);
  t.deepEqual(settings, {
    readOnly: true,
    foreground: true,
    debug: true,
    format: 'qed',
    threads: 8,
    threadsMax: 8,
    session: 'native',
    cacheSize: 64 * MIB,
    backing: 'any',
    growable: true,
    kernelCache: true,
    allowOther: true,
    forceShare: true,
    shareRw: true,
    log: '/tmp/x',
    flags: [],
  });
  const words = long.map((option) => option.slice(2));
  t.deepEqual(parseMountArguments(['-o', words.join(','), 'a', 'm']).settings, settings);
  const underscores = words.map((word) => word.replaceAll('-', '_'));
  t.deepEqual(parseMountArguments(['a', 'm', '-o', underscores.join(',')]).settings, settings);
});

test('short options: -rfdU, and -d stays in the foreground', (t) => {
  const { settings } = parseMountArguments(['-rdU', 'a', 'm']);
  t.like(settings, { readOnly: true, foreground: true, debug: true, forceShare: true });
});

test('words of mount(8) and fstab are accepted', (t) => {
  const words =
    'defaults,auto,noauto,user,users,user=me,nofail,_netdev,x-systemd.automount,x-a=b,X-mount.mkdir,rw,exec,suid,nosuid,dev,nodev,atime,';
  const { settings } = parseMountArguments(['-o', `${words},noexec,noatime,relatime,noatime`, 'a', 'm']);
  t.deepEqual(settings, { ...defaultSettings(), flags: ['noexec', 'noatime', 'relatime'] });
});

test('of ro and rw the last one counts, but --read-only outdoes both', (t) => {
  t.false(parseMountArguments(['-o', 'ro,rw', 'a', 'm']).settings.readOnly);
  t.true(parseMountArguments(['-o', 'rw', '-o', 'ro', 'a', 'm']).settings.readOnly);
  t.true(parseMountArguments(['-r', '-o', 'rw', 'a', 'm']).settings.readOnly);
});

for (const [args, message] of [
  [['-o', 'nonsense'], 'Unknown mount option "nonsense"'],
  [['-o', 'constructor'], 'Unknown mount option "constructor"'],
  [['-o', 'x'], 'Unknown mount option "x"'],
  [['-o', 'threads'], 'Option "threads" needs a value: threads=...'],
  [['-o', 'threads='], 'Option "threads" needs a value: threads=...'],
  [['-o', 'growable=1'], 'Option "growable" takes no value, but "growable=1" gives one'],
  [['--threads', '0'], 'Invalid number of threads "0": use 1 to 64'],
  [['--threads', '1e1'], 'Invalid number of threads "1e1": use 1 to 64'],
  [['-o', 'threads=65'], 'Invalid number of threads "65": use 1 to 64'],
  [['--session', 'fast'], 'Invalid session "fast": use auto or kernel or native'],
  [['--backing', '/'], 'Invalid backing "/": use directory or any'],
  [['--cache-size', '4k'], 'Invalid cache size "4k": use 1M to 4G'],
  [['--nonsense'], "unrecognized option '--nonsense'"],
] as const) {
  test(`parseMountArguments() refuses ${args.join(' ')}`, (t) => {
    const error = t.throws(() => parseMountArguments([...args, 'a', 'm']), { instanceOf: UsageError });
    t.is(error?.message, message);
  });
}
