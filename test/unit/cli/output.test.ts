import test from 'ava';
import { infoOf, infoText } from '../../../src/block/info';
import { percent, qemuJson } from '../../../src/cli/output';
import { humanSize } from '../../../src/units';

const HUMAN: [bytes: number, text: string][] = [
  [0, '0 B'],
  [1, '1 B'],
  [512, '512 B'],
  [999, '999 B'],
  [1000, '0.977 KiB'],
  [1024, '1 KiB'],
  [790528, '772 KiB'],
  [1000448, '977 KiB'],
  [1024000, '0.977 MiB'],
  [1047552, '0.999 MiB'],
  [1048576, '1 MiB'],
  [1500000256, '1.4 GiB'],
  [999500000256, '931 GiB'],
  [10995116277760, '10 TiB'],
  [Number.MAX_SAFE_INTEGER, '8 PiB'],
];

test('humanSize() writes three digits as qemu-img does', (t) => {
  for (const [bytes, text] of HUMAN) t.is(humanSize(bytes), text, String(bytes));
});

const PERCENTS: [part: number, whole: number, text: string][] = [
  [0, 1, '0.00%'],
  [1, 1, '100.00%'],
  [1, 160, '0.62%'], // exactly 0.625: to the even digit
  [3, 160, '1.88%'], // exactly 1.875
  [1, 800, '0.12%'],
  [3, 800, '0.38%'],
  [1, 3, '33.33%'],
  [2, 3, '66.67%'],
  [4, 160, '2.50%'],
  [10240, 16384, '62.50%'],
];

test('percent() rounds as C does', (t) => {
  for (const [part, whole, text] of PERCENTS) t.is(percent(part, whole), text, `${part}/${whole}`);
});

test('qemuJson() has nothing but ASCII, escaped in capitals', (t) => {
  t.is(
    qemuJson({ a: 'bä\u{1f600}\x7f\x1b\n"\\ü' }),
    '{\n    "a": "b\\u00E4\\uD83D\\uDE00\\u007F\\u001B\\n\\"\\\\\\u00FC"\n}',
  );
  t.is(qemuJson({ a: '\\u00e4' }), '{\n    "a": "\\\\u00e4"\n}', 'a backslash and letters stay what they are');
});

test('infoOf() leaves out what an image does not have', (t) => {
  const raw = { format: 'raw', virtualSize: 1, clusterSize: 0, dirty: false };
  t.deepEqual(infoOf({ path: 'a.img', header: raw, virtualSize: 1024, actualSize: 0 }), {
    'virtual-size': 1024,
    filename: 'a.img',
    format: 'raw',
    'actual-size': 0,
    'dirty-flag': false,
  });
});

test('infoText() shows where the backing file is and that the image was not closed', (t) => {
  const header = { format: 'qed', virtualSize: 0, clusterSize: 4096, dirty: true };
  const text = (path: string, name: string) =>
    infoText(infoOf({ path, header: { ...header, backing: { name, format: 'raw' } }, virtualSize: 0, actualSize: 0 }));
  const paths: [path: string, name: string, line: string][] = [
    ['a.qed', 'b.raw', 'b.raw'],
    ['d/a.qed', 'b.raw', 'b.raw (actual path: d/b.raw)'],
    ['d/a.qed', '../b.raw', '../b.raw (actual path: d/../b.raw)'],
    ['/d/a.qed', '/b.raw', '/b.raw'],
    ['d/a.qed', 'nbd:host:1', 'nbd:host:1'],
  ];
  for (const [path, name, line] of paths) {
    t.true(text(path, name).includes(`\nbacking file: ${line}\nbacking file format: raw\n`), name);
    t.true(text(path, name).includes('\ncluster_size: 4096\ncleanly shut down: no\n'));
  }
});
