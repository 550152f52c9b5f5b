/** One thread's end of /dev/fuse, over a pair of sockets. */
import * as fs from 'node:fs';
import test from 'ava';
import { Channel } from '../../../src/fuse/kernel/channel';
import { OPCODE } from '../../../src/fuse/kernel/protocol';
import { createSeats, Seats } from '../../../src/fuse/kernel/seats';
import { socketPair } from '../../../src/system/socket';

test('receive(): what there is to do meanwhile ends with a request, goes on in the next pause, and is over when it says so', (t) => {
  const [ours, theirs] = socketPair();
  const request = Buffer.alloc(40);
  request.writeUInt32LE(request.length, 0);
  request.writeUInt32LE(OPCODE.DESTROY, 4);
  const send = () => fs.writeSync(ours, request);
  const seats = new Seats(createSeats(1, 1));
  let calls = 0;
  const idle = (): boolean => {
    calls++;
    t.false(seats.nobodyWaits, 'it can be asked at any moment');
    if (calls === 3 || calls === 5) send();
    return calls < 5;
  };
  const channel = new Channel(theirs, seats, idle);
  t.is(channel.receive(), request.length);
  t.is(calls, 3);
  channel.leaveUnanswered();

  send();
  t.is(channel.receive(), request.length);
  t.is(calls, 3, 'somebody asks already');
  channel.leaveUnanswered();

  t.is(channel.receive(), request.length);
  t.is(calls, 5);
  channel.leaveUnanswered();

  send();
  t.is(channel.receive(), request.length);
  t.is(calls, 5);
  channel.leaveUnanswered();
  channel.close();
  fs.closeSync(ours);
  fs.closeSync(theirs);
});
