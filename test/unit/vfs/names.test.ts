import test from 'ava';
import { cutToBytes, NAME_MAX_BYTES, safeName, UniqueNames } from '../../../src/vfs/names';

const SAFE: [raw: string, expected: string][] = [
  ['vm.qed', 'vm.qed'],
  ['my disk (1).img', 'my disk (1).img'],
  ['Ωmega.qed', 'Ωmega.qed'],
  ['', 'image'],
  ['.', '_'],
  ['..', '__'],
  ['...', '...'],
  ['.hidden', '.hidden'],
  ['a/b', 'a_b'],
  ['/', '_'],
  ['../../etc/passwd', '.._.._etc_passwd'],
  ['a\0b', 'a_b'],
  ['a\nb\tc', 'a_b_c'],
  ['\x1b[31mred', '_[31mred'],
  ['del\x7f', 'del_'],
  ['c1\x9b31m', 'c1_31m'],
  ['half\ud800pair', 'half\ufffdpair'],
  ['😀', '😀'],
];

test('safeName() makes one path component of any text', (t) => {
  for (const [raw, expected] of SAFE) t.is(safeName(raw, 'image'), expected, JSON.stringify(raw));
  t.is(SAFE.length, 18);
});

test('cutToBytes() cuts between characters', (t) => {
  t.is(cutToBytes('abc', 3), 'abc');
  t.is(cutToBytes('abc', 2), 'ab');
  t.is(cutToBytes('aé', 2), 'a', 'é takes two bytes');
  t.is(cutToBytes('aé', 3), 'aé');
  t.is(cutToBytes('a😀b', 4), 'a', '😀 takes four bytes');
  t.is(cutToBytes('a😀b', 5), 'a😀');
});

test('safeName() cuts to what Linux allows in a name', (t) => {
  t.is(safeName('x'.repeat(255), 'image').length, NAME_MAX_BYTES);
  t.is(safeName('x'.repeat(300), 'image').length, NAME_MAX_BYTES);
  t.is(Buffer.byteLength(safeName('é'.repeat(200), 'image')), 254);
});

test('UniqueNames.take() gives every name once', (t) => {
  const names = new UniqueNames();
  const given = ['a', 'a', 'a', 'b', 'a~2', 'a~4', 'a', 'b'].map((name) => names.take(name));
  t.deepEqual(given, ['a', 'a~2', 'a~3', 'b', 'a~2~2', 'a~4', 'a~5', 'b~2']);
});

test('UniqueNames.take() keeps numbered long names within the limit', (t) => {
  const names = new UniqueNames();
  const long = 'é'.repeat(127);
  const given = Array.from({ length: 12 }, () => names.take(long));
  t.is(new Set(given).size, 12);
  for (const name of given) t.true(Buffer.byteLength(name) <= NAME_MAX_BYTES, name);
  t.true(given[11]?.endsWith('~12'));
});

test('UniqueNames.take() numbers ten thousand equal names without searching each time', (t) => {
  const names = new UniqueNames();
  const given = new Set(Array.from({ length: 10_000 }, () => names.take('a')));
  t.is(given.size, 10_000);
  t.true(given.has('a~10000'));
});
