/** What the tests of qcow2 beside QEMU share: the disk as both read it, and programs that write. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { KIB, MIB } from '../../src/units';
import { checkFile, open } from '../helpers/images';
import { LONG, patternBytes, type Random } from '../helpers/random';
import { make, qemuImg } from './qemu';

export const SIZE = 6 * MIB + 5 * 512;
export const OPERATIONS = LONG ? 3000 : 90;

/** Runs programs of qemu-io; no error is allowed. */
export function io(directory: string, file: string, ...commands: string[]): void {
  const words = commands.flatMap((command) => ['-c', command]);
  execFileSync('qemu-io', ['-f', 'qcow2', ...words, file], { cwd: directory, stdio: ['ignore', 'ignore', 'pipe'] });
}

/** The whole disk as QEMU reads it. @param words e.g. `-l NAME` */
export function theirBytes(directory: string, file: string, ...words: string[]): Buffer {
  make(directory, 'convert', '-f', 'qcow2', '-O', 'raw', ...words, file, 'converted');
  const bytes = fs.readFileSync(path.join(directory, 'converted'));
  fs.rmSync(path.join(directory, 'converted'));
  return bytes;
}

function ourBytes(node: BlockNode): Buffer {
  const bytes = Buffer.alloc(node.size());
  node.read(0, bytes, 0, bytes.length);
  return bytes;
}

export function readAll(file: string): Buffer {
  const image = open(file, { readOnly: true });
  try {
    return ourBytes(image.node);
  } finally {
    image.close();
  }
}

/** The assertion of the test runner takes seconds for megabytes. */
export function sameBytes(t: ExecutionContext, found: Buffer, expected: Buffer, words = 'content'): void {
  if (Buffer.compare(found, expected) === 0) {
    t.pass();
    return;
  }
  const at = found.findIndex((byte, index) => byte !== expected[index]);
  t.fail(`${words}: ${found.length} and ${expected.length} bytes, the first difference at ${at}`);
}

export function isSound(t: ExecutionContext, directory: string, file: string, words: string): void {
  const check = qemuImg(directory, ['check', '-f', 'qcow2', file]);
  t.is(check.code, 0, `${words}: ${check.stdout}${check.stderr}`);
  const ours = checkFile(path.join(directory, file));
  t.deepEqual([ours.corruptions, ours.checkErrors, ours.leaks], [0, 0, 0], `${words}: ${ours.messages.join('; ')}`);
}

/** A random program through our code; `disk` is what it must hold and is kept up to date. */
export function write(t: ExecutionContext, file: string, disk: Buffer, random: Random, operations: number): void {
  let image = open(file);
  for (let i = 0; i < operations; i++) {
    const length = random.chance(0.5) ? random.between(1, 5000) : random.between(1, 200_000);
    let offset = random.below(disk.length - 1);
    if (random.chance(0.3)) offset -= offset % (4 * KIB);
    const count = Math.min(length, disk.length - offset);
    const what = random.below(20);
    if (what < 11) {
      const bytes = patternBytes(offset, count, i + 1);
      image.node.write(offset, bytes, 0, count);
      disk.set(bytes, offset);
    } else if (what < 16) {
      image.node.writeZeroes(offset, count);
      disk.fill(0, offset, offset + count);
    } else if (what === 16) image.node.allocate(offset, count);
    else if (what === 17) image.node.flush();
    else if (what === 18 && random.chance(0.2)) {
      image.close();
      image = open(file);
    }
    const read = Buffer.alloc(count);
    image.node.read(offset, read, 0, count);
    if (Buffer.compare(read, disk.subarray(offset, offset + count)) !== 0) t.fail(`operation ${i} reads wrong`);
  }
  image.close();
}
