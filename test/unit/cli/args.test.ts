import test from 'ava';
import { outputFormat, parseOptionList, parseSize, parseWords, sizeArgument } from '../../../src/cli/args';
import { UsageError } from '../../../src/cli/command';

const KIB = 1024n;

const SIZES: [text: string, bytes: bigint | undefined][] = [
  ['0', 0n],
  ['1', 1n],
  ['65536', 65536n],
  ['1b', 1n],
  ['1B', 1n],
  ['1k', KIB],
  ['1K', KIB],
  ['1M', KIB ** 2n],
  ['2g', 2n * KIB ** 3n],
  ['3T', 3n * KIB ** 4n],
  ['1P', KIB ** 5n],
  ['7E', 7n * KIB ** 6n],
  ['1.5G', (3n * KIB ** 3n) / 2n],
  ['0.5k', 512n],
  ['1.999k', 2046n],
  ['0x10000', 65536n],
  ['0XfF', 255n],
  ['9007199254740993', 9007199254740993n],
  ['', undefined],
  ['k', undefined],
  ['-1', undefined],
  ['+1', undefined],
  ['1 M', undefined],
  ['1kk', undefined],
  ['1KiB', undefined],
  ['1.5', undefined],
  ['1.5b', undefined],
  ['1.M', undefined],
  ['.5M', undefined],
  ['1e6', undefined],
  ['0x', undefined],
  ['0x1k', undefined],
  ['1,5M', undefined],
  ['١', undefined],
];

test('parseSize() takes what qemu-img takes, exactly', (t) => {
  for (const [text, bytes] of SIZES) t.is(parseSize(text), bytes, JSON.stringify(text));
  t.is(SIZES.length, 34);
});

test('sizeArgument() says what is wrong in one line', (t) => {
  t.is(sizeArgument('4k', 'image size'), 4096);
  t.is(sizeArgument('9007199254740991', 'image size'), Number.MAX_SAFE_INTEGER);
  const wrong = t.throws(() => sizeArgument('4x', 'image size'), { instanceOf: UsageError });
  t.is(wrong?.message, 'Invalid image size "4x" specified. You may use k, M, G, T, P or E suffixes for powers of 1024');
  const large = t.throws(() => sizeArgument('8P', 'image size'), { instanceOf: UsageError });
  t.is(large?.message, 'Invalid image size "8P" specified. Must be between 0 and 9007199254740991');
});

const LISTS: [lists: string[], values: Record<string, string>, help: boolean][] = [
  [[], {}, false],
  [['a=1'], { a: '1' }, false],
  [['a=1,b=2'], { a: '1', b: '2' }, false],
  [['a=1', 'b=2'], { a: '1', b: '2' }, false],
  [['a=1,a=2'], { a: '2' }, false],
  [['a=1,,2'], { a: '1,2' }, false],
  [['a=,,,b=2'], { a: ',', b: '2' }, false],
  [['a=x=y'], { a: 'x=y' }, false],
  [['a='], { a: '' }, false],
  [['a'], { a: 'on' }, false],
  [['help'], {}, true],
  [['?'], {}, true],
  [['a=1,help'], { a: '1' }, true],
  [['a=help'], { a: 'help' }, false],
];

test('parseOptionList() splits at commas and keeps doubled ones', (t) => {
  for (const [lists, values, help] of LISTS) {
    const parsed = parseOptionList(lists);
    t.deepEqual(Object.fromEntries(parsed.values), values, lists.join(' '));
    t.is(parsed.help, help, lists.join(' '));
  }
  for (const empty of ['', ',', 'a=1,', ',a=1', 'a=1,,,b']) {
    if (empty === 'a=1,,,b') t.notThrows(() => parseOptionList([empty]));
    else t.throws(() => parseOptionList([empty]), { instanceOf: UsageError, message: `Invalid option list: ${empty}` });
  }
});

const OPTIONS = {
  format: { type: 'string', short: 'f' },
  quiet: { type: 'boolean', short: 'q' },
  options: { type: 'string', short: 'o', multiple: true },
} as const;

test('parseWords() takes options anywhere and in every spelling', (t) => {
  for (const args of [
    ['-f', 'qed', '-q', 'file'],
    ['file', '-q', '-f', 'qed'],
    ['-qf', 'qed', 'file'],
    ['-fqed', '-q', 'file'],
    ['--format=qed', '--quiet', 'file'],
    ['--format', 'qed', '-q', '--', 'file'],
    ['-f', 'raw', '-f', 'qed', '-q', 'file'],
  ]) {
    const { values, positionals } = parseWords(args, OPTIONS);
    t.is(values.format, 'qed', args.join(' '));
    t.true(values.quiet);
    t.deepEqual(positionals, ['file']);
  }
  t.deepEqual(parseWords(['-o', 'a=1', '-o', 'b'], OPTIONS).values.options, ['a=1', 'b']);
  t.deepEqual(parseWords(['--', '-q'], OPTIONS).positionals, ['-q']);
});

const WRONG: [args: string[], message: string][] = [
  [['-z'], "unrecognized option '-z'"],
  [['--zzz'], "unrecognized option '--zzz'"],
  [['--zzz=1'], "unrecognized option '--zzz'"],
  [['-qz'], "unrecognized option '-z'"],
  [['-f'], "missing argument for option '-f'"],
  [['--format'], "missing argument for option '-f'"],
  [['-f', '-q'], "missing argument for option '-f'"],
  [['--quiet=yes'], "option '-q' takes no argument"],
];

test('parseWords() says what is wrong as getopt does', (t) => {
  for (const [args, message] of WRONG) {
    t.throws(() => parseWords(args, OPTIONS), { instanceOf: UsageError, message }, args.join(' '));
  }
});

test('outputFormat() knows human and json', (t) => {
  t.is(outputFormat(undefined), 'human');
  t.is(outputFormat('human'), 'human');
  t.is(outputFormat('json'), 'json');
  t.throws(() => outputFormat('xml'), { instanceOf: UsageError });
});
