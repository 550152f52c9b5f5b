/** The first sector of a disk whose format was guessed as raw: whoever opens it next must not take it for something else. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import { BlockError } from '../../src/errors';
import { MIB } from '../../src/units';
import { open } from '../helpers/images';
import { oracleTest, run } from './qemu';

const SECTOR = 512;

function sector(...parts: [at: number, content: string | Buffer][]): Buffer {
  const bytes = Buffer.alloc(SECTOR);
  for (const [at, content] of parts) Buffer.from(content as string, 'latin1').copy(bytes, at);
  return bytes;
}

const BOCHS: [number, string][] = [
  [0, 'Bochs Virtual HD Image'],
  [32, 'Redolog'],
  [48, 'Growing'],
  [64, '\0\0\x02\0'],
];

/** What a guest may try to write. */
const SECTORS: Record<string, Buffer> = {
  qcow: sector([0, 'QFI\xfb\0\0\0\x01']),
  qcow2: sector([0, 'QFI\xfb\0\0\0\x03']),
  'qcow2 of a version to come': sector([0, 'QFI\xfb\0\0\0\x04']),
  'qcow of no version': sector([0, 'QFI\xfb\0\0\0\0']),
  qed: sector([0, 'QED\0']),
  'vmdk, sparse': sector([0, 'KDMV\x01']),
  'vmdk of ESX': sector([0, 'COWD\x01']),
  'vmdk descriptor': sector([0, '# Disk DescriptorFile\nversion=1\nRW 1 FLAT "/etc/shadow" 0\n']),
  'vmdk descriptor of Windows': sector([0, '# Disk DescriptorFile\r\nversion=3\r\n']),
  'vmdk descriptor after a blank line': sector([0, '   \nversion=2\n']),
  'a text': sector([0, '# Disk DescriptorFile\nno version=1\n']),
  vdi: sector([0x40, '\x7f\x10\xda\xbe']),
  vpc: sector([0, 'conectix']),
  vhdx: sector([0, 'vhdxfile']),
  parallels: sector([0, 'WithoutFreeSpace\x02\0\0\0']),
  'parallels, extended': sector([0, 'WithouFreSpacExt\x02\0\0\0']),
  bochs: sector(...BOCHS),
  cloop: sector([0, '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n']),
  'LUKS 1': sector([0, 'LUKS\xba\xbe\0\x01']),
  'LUKS 2': sector([0, 'LUKS\xba\xbe\0\x02']),
  'a boot sector': sector([0, '\xeb\x63\x90'], [510, '\x55\xaa']),
  zeroes: sector(),
};

function refusedByUs(t: ExecutionContext, disk: string, format: string | undefined, write: () => void): boolean {
  const before = fs.readFileSync(disk).subarray(0, SECTOR);
  try {
    write();
    return false;
  } catch (error) {
    t.true(error instanceof BlockError && error.code === 'DENIED', String(error));
    t.regex(String(error), /guessed as raw, and its first sector would look like \w+; open it with --format raw/);
    t.deepEqual(fs.readFileSync(disk).subarray(0, SECTOR), before, format);
    return true;
  }
}

oracleTest(
  'a guest cannot turn a disk that was guessed as raw into another format; QEMU refuses the same',
  (t, place) => {
    let refusals = 0;
    for (const [name, bytes] of Object.entries(SECTORS)) {
      const [theirs, ours, source] = ['theirs.img', 'ours.img', 'sector'].map((file) => path.join(place, file));
      fs.writeFileSync(source, bytes);
      for (const disk of [theirs, ours]) {
        fs.writeFileSync(disk, '');
        fs.truncateSync(disk, MIB);
      }
      const qemu = run(place, 'qemu-io', ['-c', `write -s ${source} 0 512`, theirs]);
      const expected = /Operation not permitted/.test(qemu.stdout + qemu.stderr);
      t.true(expected || /wrote 512\/512/.test(qemu.stdout), name + qemu.stderr);

      const image = open(ours);
      const write = (from: number, to: number) => () => image.node.write(from, bytes, from, to - from);
      // In two pieces, each of which is harmless.
      const [first, second] = [write(0, 3), write(3, SECTOR)];
      t.is(refusedByUs(t, ours, name, write(0, SECTOR)), expected, name);
      const inPieces = refusedByUs(t, ours, name, first) || refusedByUs(t, ours, name, second);
      t.is(inPieces, expected, `${name} in two pieces`);
      image.close();
      const said = open(ours, { format: 'raw' });
      t.notThrows(() => said.node.write(0, bytes, 0, SECTOR), name);
      said.close();
      if (expected) refusals++;

      // A file that looks so is not shown as a raw disk either, unless the user says so.
      if (!expected || name.startsWith('qcow') || name === 'qed') continue;
      const error = t.throws(() => open(ours), { instanceOf: BlockError }, name);
      t.is(error?.code, 'UNSUPPORTED_FEATURE', name);
      t.regex(error?.message ?? '', /it looks like \w+, which is not supported/);
    }
    t.is(Object.keys(SECTORS).length, 22);
    t.is(refusals, 17);
  },
);

oracleTest('zeroes cannot finish a header that a guest has prepared', (t, place) => {
  const disk = path.join(place, 'disk.img');
  fs.writeFileSync(disk, '');
  fs.truncateSync(disk, MIB);
  const image = open(disk);
  // Version 0x0101 is none; with its first byte zero it is version 1.
  image.node.write(0, Buffer.from('LUKS\xba\xbe\x01\x01', 'latin1'), 0, 8);
  t.true(refusedByUs(t, disk, undefined, () => image.node.writeZeroes(6, 1)));
  t.false(refusedByUs(t, disk, undefined, () => image.node.writeZeroes(0, MIB)));
  t.deepEqual(fs.readFileSync(disk), Buffer.alloc(MIB));
  image.close();
});
