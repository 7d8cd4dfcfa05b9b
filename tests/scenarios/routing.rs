//! Who is served where: every client of a room on the Monolith that has the room, and nobody hears another room.

use usher::testkit::Connect;

use crate::harness::*;

#[tokio::test]
async fn clients_of_one_room_meet_on_one_monolith_and_hear_nobody_else() {
    let rooms: Vec<String> = (0..8).map(|number| format!("room-{number}")).collect();
    let world = world_with(&rooms);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start(&[&a, &b]).await;
    let mut clients = Vec::new();
    for room in &rooms {
        for number in 0..3 {
            let client = balancer.join(room, &format!("{room}-{number}")).await;
            clients.push((room, client));
        }
    }
    for room in &rooms {
        let members = (a.members(room).len(), b.members(room).len());
        assert!(members == (3, 0) || members == (0, 3), "{room}: {members:?}");
    }
    // Fewest rooms first: both get the same number.
    assert_eq!((a.loads(), b.loads()), (4, 4));
    for (room, client) in clients.iter().step_by(3) {
        client.chat(&format!("said in {room}.")).await;
    }
    for (room, client) in &mut clients {
        let text = client.recv_until(SOON, |text| text.contains(r#""chat""#)).await.unwrap();
        assert!(text.contains(&format!("said in {room}.")), "{room} heard {text}");
    }
    drop(clients);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn rooms_go_to_the_own_region() {
    let rooms: Vec<String> = (0..6).map(|number| format!("room-{number}")).collect();
    let world = world_with(&rooms);
    let here = monolith(&world).start().await.unwrap();
    let there = monolith(&world).region(THERE).start().await.unwrap();
    let balancer = Balancer::start(&[&here, &there]).await;
    for room in &rooms {
        balancer.join(room, "t").await;
    }
    assert_eq!((here.loads(), there.loads()), (6, 0));
    alive(&[&here, &there]);
}

#[tokio::test]
async fn f27_names_that_differ_in_case_are_one_room() {
    let world = world_with(["Movie"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start(&[&a, &b]).await;
    let first = balancer.join("Movie", "t1").await;
    let mut others = Vec::new();
    for name in ["movie", "MOVIE", "mOvIe"] {
        others.push(balancer.join(name, name).await);
    }
    assert_eq!(a.loads() + b.loads(), 1);
    assert_eq!(a.members("movie").len() + b.members("movie").len(), 4);
    first.chat("to all of you").await;
    for other in &mut others {
        other.recv_until(SOON, |text| text.contains("to all of you")).await.unwrap();
    }
    let left = (first, others);
    drop(left);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn f27_a_wrong_spelling_of_an_unloaded_room_does_not_take_the_right_one_with_it() {
    let world = world_with(["Movie"]);
    let a = monolith(&world).load_delay(std::time::Duration::from_millis(50)).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let mut wrong = Connect::room(balancer.addr(), "movie", "wrong").open().await.unwrap();
    holds(&a, |state| state.join_count() == 1).await;
    let right = balancer.join("Movie", "right").await;
    assert_eq!(wrong.closed(SOON).await.unwrap().code, 4002);
    assert_eq!(a.members("Movie").len(), 1);
    drop(right);
    nobody_left(&balancer, &[&a]).await;
}
