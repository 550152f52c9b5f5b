import * as fs from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { BlockError } from '../../../src/errors';
import { OPEN_TEXTS_MAX, TextFile } from '../../../src/vfs/text-file';
import type { TextContent } from '../../../src/vfs/texts';

const READ = { read: true, write: false, truncate: false };
const MTIME_MS = 1_600_000_000_000;

function textFile(chunks: () => Iterable<string>, more: Partial<TextContent> & { bytesMax?: number } = {}) {
  const { bytesMax, ...rest } = more;
  const openTexts = new Int32Array(new SharedArrayBuffer(4));
  const facts = { ino: 3, mode: 0o640, uid: 7, gid: 8, times: new Float64Array([0, MTIME_MS]), clock: 1 };
  const content = { name: 'info.json', cheap: true, live: false, chunks, ...rest };
  return { file: new TextFile(facts, content, openTexts, bytesMax), openTexts };
}

/** Descriptors that a test leaves open go with the process of this test file. */
function open(t: ExecutionContext, file: TextFile): number {
  const { handle, isDisk } = file.open(READ);
  t.false(isDisk);
  return handle;
}

function readAll(file: TextFile, handle: number, step = 4096): string {
  const parts: Buffer[] = [];
  for (let offset = 0; ; ) {
    const target = Buffer.alloc(step);
    const count = file.read(handle, offset, target, 0, step);
    if (count === 0) return Buffer.concat(parts).toString();
    parts.push(target.subarray(0, count));
    offset += count;
  }
}

const codeOf = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    return String((error as { code?: unknown }).code);
  }
  return 'nothing thrown';
};

test('TextFile shows each reader the text of the moment when it was opened', (t) => {
  let version = 1;
  const { file } = textFile(() => [`version ${version}\n`]);
  const first = open(t, file);
  version = 22;
  const second = open(t, file);
  t.not(first, second);
  t.is(readAll(file, second, 3), 'version 22\n');
  t.is(readAll(file, first, 2), 'version 1\n');
  file.release(first);
  t.is(readAll(file, second), 'version 22\n');
});

test('TextFile.read() is short at the end and stays inside its part of the target', (t) => {
  const { file } = textFile(() => ['0123456789']);
  const handle = open(t, file);
  const cases: [offset: number, length: number, expected: string][] = [
    [0, 10, '0123456789'],
    [0, 11, '0123456789'],
    [3, 4, '3456'],
    [9, 1, '9'],
    [9, 2, '9'],
    [10, 1, ''],
    [11, 1, ''],
    [4, 0, ''],
  ];
  for (const [offset, length, expected] of cases) {
    const target = Buffer.alloc(length + 4, '.');
    t.is(file.read(handle, offset, target, 2, length), expected.length);
    t.is(target.toString(), `..${expected}`.padEnd(length + 4, '.'));
  }
});

test('TextFile reads the same whatever pieces its text came in', (t) => {
  const line = `${'é'.repeat(60)}\n`;
  const whole = line.repeat(5000);
  const pieces: Record<string, () => Iterable<string>> = {
    'one piece': () => [whole],
    lines: () => Array.from({ length: 5000 }, () => line),
    'none and empty ones': () => ['', whole, ''],
  };
  for (const [name, chunks] of Object.entries(pieces)) {
    const { file } = textFile(chunks, { cheap: false });
    t.true(readAll(file, open(t, file), 100_001) === whole, name);
  }
  const empty = textFile(() => []).file;
  t.is(readAll(empty, open(t, empty)), '');
});

test('TextFile.attributes() knows the exact size of a cheap text', (t) => {
  const { file } = textFile(() => ['é\n', 'x'.repeat(510)]);
  const times = { atimeMs: MTIME_MS, mtimeMs: MTIME_MS, ctimeMs: MTIME_MS };
  const expected = {
    ino: 3,
    kind: 'file',
    mode: 0o640,
    uid: 7,
    gid: 8,
    nlink: 1,
    size: 513,
    blocks: 2,
    blksize: 4096,
    ...times,
  };
  t.deepEqual(file.attributes() as unknown, expected);
  const handle = open(t, file);
  t.is(Buffer.byteLength(readAll(file, handle)), 513);
});

test('TextFile.attributes() does not make a dear text', (t) => {
  let made = 0;
  const chunks = () => {
    made += 1;
    return ['[]\n'];
  };
  const { file } = textFile(chunks, { cheap: false });
  t.is(file.attributes().size, 0);
  t.is(file.attributes().blocks, 0);
  t.is(made, 0);
  t.is(readAll(file, open(t, file)), '[]\n');
  t.is(made, 1);
});

test('TextFile.attributes() of a live text is of now', (t) => {
  const before = Date.now();
  t.true(textFile(() => ['{}'], { live: true }).file.attributes().mtimeMs >= before);
});

test('TextFile.attributes() answers even when the text cannot be made', (t) => {
  const { file } = textFile(() => {
    throw new BlockError('IO', 'Cannot read');
  });
  t.is(file.attributes().size, 0);
});

test('TextFile.open() passes on why the text cannot be made, and keeps no place', (t) => {
  const error = new BlockError('CORRUPT_IMAGE', 'bad table');
  const { file, openTexts } = textFile(function* () {
    yield 'x'.repeat(100_000);
    throw error;
  });
  t.is(
    t.throws(() => file.open(READ)),
    error,
  );
  t.is(openTexts[0], 0);
});

test('TextFile answers EROFS to whatever would change it', (t) => {
  const { file, openTexts } = textFile(() => ['{}']);
  const attempts: (() => unknown)[] = [
    () => file.open({ read: true, write: true, truncate: false }),
    () => file.open({ read: false, write: true, truncate: false }),
    () => file.open({ read: true, write: false, truncate: true }),
    () => file.write(),
    () => file.setSize(),
    () => file.fallocate(),
  ];
  t.deepEqual(
    attempts.map(codeOf),
    attempts.map(() => 'EROFS'),
  );
  t.is(openTexts[0], 0);
  t.notThrows(() => file.fsync());
});

test('TextFile.seek() shows one run of data and the hole at the end', (t) => {
  const { file } = textFile(() => ['0123456789']);
  const handle = open(t, file);
  const cases: [offset: number, data: number | string, hole: number | string][] = [
    [-1, 'ENXIO', 'ENXIO'],
    [0, 0, 10],
    [5, 5, 10],
    [9, 9, 10],
    [10, 'ENXIO', 'ENXIO'],
    [11, 'ENXIO', 'ENXIO'],
  ];
  for (const [offset, data, hole] of cases) {
    for (const [what, expected] of [
      ['data', data],
      ['hole', hole],
    ] as const) {
      if (expected === 'ENXIO')
        t.is(
          codeOf(() => file.seek(handle, offset, what)),
          'ENXIO',
        );
      else t.is(file.seek(handle, offset, what), expected as number);
    }
  }
});

test('TextFile.open() stops at a bound, for all files and threads together, until one is released', (t) => {
  const { file, openTexts } = textFile(() => ['{}']);
  openTexts[0] = OPEN_TEXTS_MAX - 2;
  const first = open(t, file);
  open(t, file);
  t.is(openTexts[0], OPEN_TEXTS_MAX);
  t.throws(() => file.open(READ), { message: 'Cannot open info.json: 256 such files of this mount are open already' });
  t.is(
    codeOf(() => file.open(READ)),
    'EMFILE',
  );
  t.is(openTexts[0], OPEN_TEXTS_MAX, 'a refusal takes no place');
  file.release(first);
  t.notThrows(() => open(t, file));
});

test('TextFile.open() refuses a text that is too long, and gives its memory back', (t) => {
  const line = 'x'.repeat(1000);
  const sized = (count: number) =>
    textFile(() => Array.from({ length: count }, () => line), { name: 'map.json', bytesMax: 100_000 });
  const fits = sized(100).file;
  t.is(readAll(fits, open(t, fits)).length, 100_000);
  const { file, openTexts } = sized(101);
  const before = fs.readdirSync('/proc/self/fd').length;
  t.throws(() => file.open(READ), { message: 'Cannot make map.json: it has more than 100000 bytes; use imagefs map' });
  t.is(
    codeOf(() => file.open(READ)),
    'EFBIG',
  );
  t.is(fs.readdirSync('/proc/self/fd').length, before);
  t.is(openTexts[0], 0);
});

test('TextFile.release() closes the descriptor and never throws', (t) => {
  const { file, openTexts } = textFile(() => ['{}']);
  const { handle } = file.open(READ);
  t.true(fs.readlinkSync(`/proc/self/fd/${handle}`).includes('info.json'));
  file.release(handle);
  t.false(fs.existsSync(`/proc/self/fd/${handle}`));
  t.is(openTexts[0], 0);
  t.notThrows(() => file.release(1_000_000));
});
