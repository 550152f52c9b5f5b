/**
 * The loop of `serve.ts` over a pair of sockets instead of /dev/fuse. Whoever holds this makes up the requests: they take the same way
 * through the same code, which V8 compiles once it has run often enough.
 *
 *   write ──► socket ──► socket ──► KernelServer ──► file system      one request at a time: sockets of a stream
 *   read  ◄── socket ◄── socket ◄── reply                             keep no borders between two
 */
import * as fs from 'node:fs';
import { ReadablePoll } from '../../system/poll';
import { socketPair } from '../../system/socket';
import type { FileSystem } from '../../vfs/filesystem';
import { IN, IO_IN, OPCODE, OUT, OUT_HEADER_BYTES } from './protocol';
import { KernelServer } from './serve';

export class Practice {
  private readonly ours: number;
  private readonly theirs: number;
  private readonly answered: ReadablePoll;
  private readonly server: KernelServer;
  private readonly request: DataView;
  private readonly requestBytes: Buffer;
  private readonly reply: Buffer;

  /**
   * @param ino a file of `fileSystem` that needs no handle
   * @param most largest read or write, bytes; less than a socket holds
   */
  constructor(
    fileSystem: FileSystem,
    private readonly ino: number,
    most: number,
  ) {
    this.requestBytes = Buffer.alloc(IO_IN.DATA + most);
    this.request = new DataView(this.requestBytes.buffer, this.requestBytes.byteOffset, this.requestBytes.length);
    this.reply = Buffer.alloc(OUT_HEADER_BYTES + most);
    [this.ours, this.theirs] = socketPair();
    this.answered = new ReadablePoll(this.ours);
    try {
      this.server = new KernelServer(this.theirs, fileSystem, { kernelCache: false, readOnly: false });
    } catch (error) {
      this.closeSockets();
      throw error;
    }
  }

  write(offset: number, length: number): void {
    this.ask(OPCODE.WRITE, IO_IN.DATA + length, offset, length);
  }

  read(offset: number, length: number): void {
    this.ask(OPCODE.READ, IO_IN.DATA, offset, length);
  }

  fsync(): void {
    this.ask(OPCODE.FSYNC, IO_IN.DATA, 0, 0);
  }

  close(): void {
    try {
      this.server.close();
    } finally {
      this.closeSockets();
    }
  }

  private closeSockets(): void {
    try {
      fs.closeSync(this.ours);
    } finally {
      fs.closeSync(this.theirs);
    }
  }

  private ask(opcode: number, length: number, offset: number, size: number): void {
    const { request } = this;
    request.setUint32(IN.LENGTH, length, true);
    request.setUint32(IN.OPCODE, opcode, true);
    request.setUint32(IN.NODE, this.ino, true);
    request.setBigUint64(IO_IN.OFFSET, BigInt(offset), true);
    request.setUint32(IO_IN.SIZE, size, true);
    fs.writeSync(this.ours, this.requestBytes, 0, length);
    const served = this.server.serveNext();
    // It is there, or it never comes.
    if (!served || !this.answered.ready()) throw new Error(`no reply to FUSE opcode ${opcode} of a made-up image`);
    fs.readSync(this.ours, this.reply);
    const error = this.reply.readInt32LE(OUT.ERROR);
    if (error !== 0) throw new Error(`FUSE opcode ${opcode} at ${offset} of a made-up image: error ${error}`);
  }
}
