/** Whether the kernel begins to read: counted by it, in ru_inblock, so only where files lie on a block device. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { blocksRead } from '../../../src/system/blocks-read';
import { startReading } from '../../../src/system/start-reading';
import { skip } from '../../fuse/harness';
import { temporaryDirectory } from '../../helpers/images';

const BYTES = 1024 * 1024;

/** The kernel forgets what it keeps of the file. */
function forget(file: string): void {
  execFileSync('dd', [
    'if=/dev/null',
    `of=${file}`,
    'oflag=nocache',
    'conv=notrunc,fdatasync',
    'count=0',
    'status=none',
  ]);
}

test('startReading() has the kernel read what it does not keep yet, without waiting for it', (t) => {
  const file = path.join(temporaryDirectory(t), 'file');
  fs.writeFileSync(file, Buffer.alloc(BYTES, 1));
  forget(file);
  const fd = fs.openSync(file, 'r');
  const read = (offset: number): number => {
    const before = blocksRead();
    fs.readSync(fd, Buffer.alloc(4096), 0, 4096, offset);
    return blocksRead() - before;
  };
  if (read(0) === 0) return skip(t, 'the temporary folder lies on no block device');
  const before = blocksRead();
  startReading(fd, BYTES / 2, 4096);
  t.true(blocksRead() > before, 'nothing was begun');
  t.is(read(BYTES / 2), 0, 'it was read again');
  fs.closeSync(fd);
});
