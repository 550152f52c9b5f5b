/** Opening chains: locks, loops, depth, missing files, the gate for raw backing files. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { attachImage, CHAIN_DEPTH_MAX, type OpenImage, type OpenOptions } from '../../../src/block/open';
import { BlockError, type BlockErrorCode } from '../../../src/errors';
import { createTableCache } from '../../../src/shared/table-cache';
import { KIB, MIB } from '../../../src/units';
import { createImage, have, open, temporaryDirectory } from '../../helpers/images';
import { patternBytes } from '../../helpers/random';

const QED = { format: 'qed', size: MIB, clusterSize: 4 * KIB, tableSize: 1 } as const;

function opened(t: ExecutionContext, file: string, options: Partial<OpenOptions> = {}): OpenImage {
  const image = open(file, options);
  t.teardown(() => image.close());
  return image;
}

function refused(t: ExecutionContext, code: BlockErrorCode, file: string, options: Partial<OpenOptions> = {}): string {
  const error = t.throws(() => open(file, options), { instanceOf: BlockError }, file);
  t.is(error?.code, code, error?.message);
  t.notRegex(error?.message ?? '', /\n/);
  return error?.message ?? '';
}

function openFiles(): number {
  return fs.readdirSync('/proc/self/fd').length;
}

test('openImage(): a second writer is refused in the words of QEMU, and leaves nothing open', (t) => {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, QED);
  const first = opened(t, file);
  const before = openFiles();
  t.regex(refused(t, 'BUSY', file), /Failed to get .*"write" lock.*Is another process using the image \[.*a\.qed\]\?/);
  refused(t, 'BUSY', file, { readOnly: true });
  t.is(openFiles(), before);
  opened(t, file, { readOnly: true, forceShare: true }).close();
  first.close();
  opened(t, file).close();
});

test('openImage(): readers share an image and its base; a writer of the base is refused', (t) => {
  const directory = temporaryDirectory(t);
  const base = path.join(directory, 'base.qed');
  createImage(base, QED);
  for (const name of ['a.qed', 'b.qed'])
    createImage(path.join(directory, name), { ...QED, backing: { name: 'base.qed' } });
  opened(t, path.join(directory, 'a.qed'));
  opened(t, path.join(directory, 'b.qed'));
  opened(t, base, { readOnly: true });
  refused(t, 'BUSY', base);
});

test('openImage(): qemu-io is kept off an open image, and keeps us off its own', (t) => {
  if (!have(t, 'qemu-io')) return;
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, { format: 'qed', size: MIB });
  const image = opened(t, file);
  const second = spawnSync('qemu-io', ['-f', 'qed', '-c', 'write 0 512', file], { encoding: 'utf8' });
  t.regex(second.stdout + second.stderr, /Failed to get .*lock/);
  image.close();
  const third = spawnSync('qemu-io', ['-f', 'qed', '-c', 'write -P 7 0 512', file], { encoding: 'utf8' });
  t.is(third.status, 0, third.stderr);
  const bytes = Buffer.alloc(512);
  const again = opened(t, file);
  again.node.read(0, bytes, 0, 512);
  t.true(bytes.every((byte) => byte === 7));
});

test('openImage(): a chain as deep as allowed opens and reads its base; one more is refused', (t) => {
  const directory = temporaryDirectory(t);
  const name = (depth: number) => path.join(directory, `${depth}.qed`);
  createImage(path.join(directory, 'base.raw'), { format: 'raw', size: MIB });
  fs.writeFileSync(path.join(directory, 'base.raw'), patternBytes(0, MIB, 5));
  // base.raw is one image of the chain.
  for (let depth = 1; depth <= CHAIN_DEPTH_MAX; depth++) {
    const backing = depth === 1 ? { name: 'base.raw', format: 'raw' } : { name: `${depth - 1}.qed` };
    createImage(name(depth), { ...QED, backing });
  }
  const before = openFiles();
  const image = opened(t, name(CHAIN_DEPTH_MAX - 1), { threads: 1 });
  const bytes = new Uint8Array(5000);
  image.node.read(300_000, bytes, 0, 5000);
  t.deepEqual(bytes, patternBytes(300_000, 5000, 5));
  image.node.write(300_100, Buffer.alloc(10, 1), 0, 10);
  image.node.read(300_110, bytes, 0, 100);
  t.deepEqual(bytes.subarray(0, 100), patternBytes(300_110, 100, 5));
  t.is(image.nextImageId, 1 + CHAIN_DEPTH_MAX);
  const status = image.node.status(0, 4096);
  t.is(status.depth, CHAIN_DEPTH_MAX - 1);
  image.close();
  t.regex(refused(t, 'LIMIT_EXCEEDED', name(CHAIN_DEPTH_MAX), { threads: 1 }), new RegExp(`${CHAIN_DEPTH_MAX}`));
  t.is(openFiles(), before);
});

test('openImage(): a loop is refused, however its files are named', (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string) => path.join(directory, name);
  createImage(at('self.qed'), { ...QED, backing: { name: 'self.qed' } });
  createImage(at('a.qed'), { ...QED, backing: { name: 'b.qed' } });
  createImage(at('b.qed'), { ...QED, backing: { name: `../${path.basename(directory)}/link.qed` } });
  fs.symlinkSync('a.qed', at('link.qed'));
  createImage(at('c.qed'), { ...QED, backing: { name: 'hard.qed' } });
  fs.linkSync(at('c.qed'), at('hard.qed'));
  const before = openFiles();
  for (const name of ['self.qed', 'a.qed', 'b.qed', 'c.qed', 'link.qed']) {
    for (const lock of [true, false]) t.regex(refused(t, 'INVALID_FORMAT', at(name), { lock }), /loop/);
  }
  t.is(openFiles(), before);
});

test('openImage(): a missing backing file is named, with the image that names it', (t) => {
  const directory = temporaryDirectory(t);
  const file = path.join(directory, 'a.qed');
  createImage(file, { ...QED, backing: { name: 'gone.qed' } });
  const message = refused(t, 'NOT_FOUND', file);
  t.true(message.includes(`"${file}"`) && message.includes('gone.qed'), message);
  opened(t, file, { withoutBacking: true, readOnly: true }).close();
});

test('openImage(): a raw backing file outside the directory needs --backing any, by whatever name', (t) => {
  const top = temporaryDirectory(t);
  const directory = path.join(top, 'images');
  fs.mkdirSync(path.join(directory, 'below'), { recursive: true });
  fs.mkdirSync(path.join(top, 'images-2'));
  const at = (name: string) => path.join(directory, name);
  const secret = path.join(top, 'secret');
  for (const file of [secret, at('inside.raw'), at('below/inside.raw'), path.join(top, 'images-2', 'x')]) {
    fs.writeFileSync(file, patternBytes(0, 4096, 1));
  }
  fs.symlinkSync(secret, at('link.raw'));
  fs.symlinkSync(top, at('up'));
  fs.symlinkSync('inside.raw', at('inside-link.raw'));
  const names = {
    inside: [
      'inside.raw',
      './inside.raw',
      'below/inside.raw',
      at('inside.raw'),
      'inside-link.raw',
      'below/../inside.raw',
      'file:inside.raw',
    ],
    outside: [secret, '../secret', 'link.raw', 'up/secret', 'below/../../secret', `file:${secret}`, '../images-2/x'],
  };
  let cases = 0;
  for (const format of ['raw', undefined]) {
    for (const name of names.inside) {
      createImage(at('a.qed'), { ...QED, backing: { name, format } });
      opened(t, at('a.qed')).close();
      cases++;
    }
    for (const name of names.outside) {
      createImage(at('a.qed'), { ...QED, backing: { name, format } });
      const before = openFiles();
      const message = refused(t, 'DENIED', at('a.qed'), { backing: 'directory' });
      t.regex(message, /--backing any/);
      t.is(openFiles(), before);
      const image = opened(t, at('a.qed'), { backing: 'any' });
      const bytes = new Uint8Array(4096);
      image.node.read(0, bytes, 0, 4096);
      t.deepEqual(bytes, patternBytes(0, 4096, 1));
      image.close();
      cases++;
    }
  }
  t.is(cases, 28);
});

test('openImage(): the gate counts from where the image really lies, not from a link to it', (t) => {
  const top = temporaryDirectory(t);
  const real = path.join(top, 'real');
  const links = path.join(top, 'links');
  fs.mkdirSync(real);
  fs.mkdirSync(links);
  fs.writeFileSync(path.join(real, 'base.raw'), Buffer.alloc(4096, 1));
  createImage(path.join(real, 'a.qed'), { ...QED, backing: { name: path.join(real, 'base.raw'), format: 'raw' } });
  fs.symlinkSync(path.join(real, 'a.qed'), path.join(links, 'a.qed'));
  t.notThrows(() => opened(t, path.join(links, 'a.qed'), { backing: 'directory' }).close());
});

test('openImage(): json: and protocol names are refused, a colon behind a slash is none', (t) => {
  const directory = temporaryDirectory(t);
  const file = path.join(directory, 'a.qed');
  for (const name of ['json:{"driver":"raw"}', 'nbd://host/x', 'http://host/x', 'fat:rw:x']) {
    createImage(file, { ...QED, backing: { name } });
    refused(t, 'UNSUPPORTED_FEATURE', file);
  }
  fs.writeFileSync(path.join(directory, 'x:y'), Buffer.alloc(512, 1));
  createImage(file, { ...QED, backing: { name: './x:y', format: 'raw' } });
  opened(t, file, { backing: 'directory' }).close();
});

test('openImage(): what is no image file is refused at once', (t) => {
  const directory = temporaryDirectory(t);
  refused(t, 'INVALID_FORMAT', directory, { readOnly: true });
  refused(t, 'INVALID_FORMAT', '/dev/null');
  refused(t, 'NOT_FOUND', path.join(directory, 'none'));
  const text = path.join(directory, 'text');
  fs.writeFileSync(text, 'QED');
  t.regex(refused(t, 'INVALID_FORMAT', text, { format: 'qed' }), /3 bytes|begins with/);
  refused(t, 'UNSUPPORTED_FEATURE', text, { format: 'vdi2' });
});

test('attachImage(): each thread sees what the others wrote; images share one cache', (t) => {
  const directory = temporaryDirectory(t);
  const cache = createTableCache(2 * MIB);
  const images: OpenImage[] = [];
  let imageId = 1;
  for (const name of ['a.qed', 'b.qed', 'c.qed']) {
    createImage(path.join(directory, name), QED);
    const image = opened(t, path.join(directory, name), { cache, imageId, threads: 3 });
    imageId = image.nextImageId;
    images.push(image);
  }
  t.is(imageId, 4);
  for (const [index, image] of images.entries()) {
    const other = attachImage(structuredClone(image.describe()), 2);
    const bytes = patternBytes(index, 5000, index);
    image.node.write(100, bytes, 0, 5000);
    const seen = new Uint8Array(5000);
    other.read(100, seen, 0, 5000);
    t.deepEqual(seen, bytes);
    other.writeZeroes(0, 4096);
    image.node.read(100, seen, 0, 3996);
    t.true(seen.subarray(0, 3996).every((byte) => byte === 0));
    t.is(image.node.statistics().readOperations, 2, 'counts of all threads');
  }
  images[1].close();
  const seen = new Uint8Array(904);
  images[2].node.read(4196, seen, 0, 904);
  t.deepEqual(seen, patternBytes(2, 5000, 2).subarray(4096));
});

test('close(): a failed last flush is reported, and everything is released all the same', (t) => {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, QED);
  const before = openFiles();
  const image = open(file, { threads: 2 });
  image.node.write(0, Buffer.alloc(512, 3), 0, 512);
  const { layer } = image.node as unknown as { layer: { state: { markFailed(): void } } };
  layer.state.markFailed();
  t.is(t.throws(() => image.close(), { instanceOf: BlockError })?.code, 'IO');
  t.notThrows(() => image.close(), 'a second time does nothing');
  t.is(openFiles(), before);
  opened(t, file).close();
});
